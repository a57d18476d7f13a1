"""Write `docs/states.md` from the state table."""

from pathlib import Path

from osiris.core.task import render_states_page

if __name__ == "__main__":
    (Path(__file__).parent.parent / "docs/states.md").write_text(render_states_page())
