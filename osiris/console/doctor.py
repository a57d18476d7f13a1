"""The doctor: one line for each thing that Osiris needs, and the fix for each failure."""

from dataclasses import asdict

from rich.text import Text

from osiris.bootstrap import build_osiris
from osiris.config.app_manifest import APP_EVENTS, APP_PERMISSIONS
from osiris.config.settings import Settings
from osiris.console.support import make_console, make_safe, print_json
from osiris.core.errors import Refused
from osiris.core.ports.sandbox import Probe
from osiris.data_folder import prepare_storage
from osiris.readiness import Readiness, probe_github


async def run_doctor(settings: Settings, *, as_json: bool) -> bool:
    """Print one line for each thing that Osiris needs; return True when nothing needed is
    missing."""
    probes = await _run_probes(settings)
    healthy = all(probe.ok or not probe.needed for probe in probes)
    if as_json:
        print_json({"healthy": healthy, "probes": [asdict(probe) for probe in probes]})
        return healthy
    out = make_console()
    for probe in probes:
        mark, style = (
            ("ok  ", "green")
            if probe.ok
            else ("FAIL", "red")
            if probe.needed
            else ("weak", "yellow")
        )
        detail = f": {make_safe(probe.detail, 2_000)}" if probe.detail else ""
        out.print(Text(mark, style=style), Text(f"{make_safe(probe.name)}{detail}"))
        if not probe.ok and probe.fix:
            out.print(Text(f"     → {make_safe(probe.fix, 2_000)}"))
    return healthy


async def _run_probes(settings: Settings) -> list[Probe]:
    try:
        osiris = build_osiris(settings)
        await prepare_storage(osiris.settings, osiris.engine)
    except Refused as refused:
        return [Probe(name="settings", ok=False, detail=str(refused))]
    try:
        readiness = Readiness(settings, osiris.store, osiris.sandbox, osiris.models, osiris.wake)
        github = await probe_github(osiris.auth, APP_PERMISSIONS, APP_EVENTS)
        return [*(await readiness()), *(await readiness.probe_models()), *github]
    finally:
        await osiris.models.close()
        await osiris.store.close()
