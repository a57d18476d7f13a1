"""The network of a session: a proxy that lets allowed hosts through."""
