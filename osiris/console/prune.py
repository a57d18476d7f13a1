"""Manual pruning: the same that a worker does every few hours."""

from dataclasses import asdict

from osiris.config.settings import Settings
from osiris.console.support import make_console, print_json
from osiris.core.errors import Refused
from osiris.data_folder import prepare_storage
from osiris.queue.database import connect
from osiris.queue.retention import Retention


async def prune_records(settings: Settings, *, as_json: bool) -> None:
    """Remove what has been over for longer than the settings allow, and print how much that was."""
    exports = settings.osiris_data_dir / "exports"
    engine = connect(settings.database)
    try:
        await prepare_storage(settings, engine)
        pruned = await Retention(engine, exports, days=settings.osiris_keep_days).prune()
    except OSError as error:
        raise Refused(
            f"the audit logs cannot be written to {exports}: {error.strerror}; nothing was removed"
        ) from None
    finally:
        await engine.dispose()
    if as_json:
        print_json(asdict(pruned))
        return
    make_console().print(
        f"removed what is older than {settings.osiris_keep_days} days: {pruned.deliveries}"
        f" deliveries, {pruned.conversations} conversations, and of {pruned.tasks} tasks"
        f" {pruned.steps} messages and {pruned.lines} audit log entries (now in {exports})"
    )
