"""Single parts of Osiris, made as the settings say; `bootstrap.py` joins them."""

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from osiris.agents.models.registry import Access, ModelRegistry
from osiris.bot.git.repositories import HostRepositories
from osiris.bot.github.app_auth import AppAuth
from osiris.config.http_server import create_tls_context
from osiris.config.settings import Settings, tools_environment
from osiris.core.errors import Refused
from osiris.core.ports.sandbox import GIB, Probe, SandboxLimits
from osiris.core.redaction import Redactor
from osiris.queue.in_process import LocalLiveEvents, LocalWake
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.options import SandboxOptions


def create_models(settings: Settings) -> ModelRegistry:
    """Return the models that the settings allow. Raises Refused for one that they name and that is
    not configured."""
    models = ModelRegistry(
        settings.osiris_model,
        {
            vendor: Access(key=key, url=url)
            for vendor, (key, url) in settings.list_vendors().items()
        },
        second=settings.osiris_second_model,
        patience=settings.osiris_model_patience,
        window=settings.osiris_model_window,
        hide=Redactor(settings.list_secrets()),
    )
    for model in filter(None, (settings.osiris_model, settings.osiris_second_model)):
        models.check_configured(model)
    return models


def create_repositories(settings: Settings) -> HostRepositories:
    """Return the repositories on this machine."""
    return HostRepositories(settings.osiris_data_dir / "git", Redactor(settings.list_secrets()))


def create_sandbox(
    settings: Settings, root: Path | None = None, probes: Sequence[Probe] = ()
) -> BubblewrapSandbox:
    """Return the sandbox that the settings ask for, with its sessions in `root` (None: in the data
    folder).

    `probes` are what another sandbox of this process has found out about this machine; without them
    it is asked.
    """
    options = SandboxOptions(
        toolchains=settings.osiris_toolchains,
        weak=settings.osiris_sandbox == "weak",
        network=settings.osiris_network,
        cache=int(settings.osiris_cache_gib * GIB),
        environment=tools_environment(),
    )
    return BubblewrapSandbox(
        root or settings.osiris_data_dir / "sessions",
        create_repositories(settings).mirror_path,
        options,
        probes,
    )


def create_limits(settings: Settings) -> SandboxLimits:
    """Return the limits of a session."""
    return SandboxLimits(
        memory=int(settings.osiris_sandbox_memory_gib * GIB),
        disk=int(settings.osiris_sandbox_disk_gib * GIB),
    )


def create_auth(settings: Settings) -> AppAuth | None:
    """Return the App's authentication; None while the App is not configured."""
    key = settings.private_key  # raises when its file cannot be read, whatever else is missing
    if not settings.github_app_id or not key:
        return None
    return AppAuth(
        settings.github_app_id,
        _load_key(key),
        settings.github_api_url,
        tls=create_tls_context(),
    )


def _load_key(text: str) -> RSAPrivateKey:
    """Return the App's key. Only its form is checked; the rest would take 40 ms."""
    try:
        key = load_pem_private_key(text.encode(), None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise Refused(
            "GITHUB_PRIVATE_KEY is not a private RSA key in PEM form; download it anew from the"
            " App's page"
        )
    return key


def create_hints(redis: str) -> tuple[LocalWake, LocalLiveEvents]:
    """Return hints and live events within this process, or through Redis between all processes."""
    if not redis:
        return LocalWake(), LocalLiveEvents()
    try:
        from osiris.queue.redis_events import RedisLiveEvents
        from osiris.queue.redis_wake import ArqWake
    except ModuleNotFoundError:
        raise Refused("REDIS_URL needs arq and redis: install osiris[machines]") from None
    return ArqWake(redis), RedisLiveEvents(redis)
