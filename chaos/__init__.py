"""Long forms of the crash tests: `make torture` counts what is lost and what is done twice."""
