"""The operator's settings. Only this module reads the environment."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from osiris.core.errors import Refused


def _default_data_dir() -> Path:
    """Return /var/lib/osiris for root, otherwise the user's own data folder (XDG base
    directories)."""
    if os.geteuid() == 0:
        return Path("/var/lib/osiris")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "osiris"


class Settings(BaseModel):
    """The settings, with one field per environment variable of the same name in capitals; see
    `docs/configuration.md`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    github_app_id: str = ""
    github_private_key: SecretStr = SecretStr("")
    github_private_key_file: Path | None = None
    github_webhook_secret: SecretStr = SecretStr("")
    github_api_url: str = "https://api.github.com"
    github_url: str = "https://github.com"
    database_url: SecretStr = SecretStr("")
    redis_url: SecretStr = SecretStr("")
    osiris_data_dir: Path = Field(default_factory=_default_data_dir)
    osiris_base_url: str = ""
    osiris_host: str = "127.0.0.1"
    osiris_port: Annotated[int, Field(ge=0, le=65535)] = 8000
    osiris_log_format: Literal["text", "json"] = "text"
    osiris_model: str = ""
    osiris_second_model: str = ""
    osiris_model_patience: Annotated[int, Field(ge=1, le=3600)] = 180
    osiris_model_window: Annotated[int, Field(ge=2000)] | None = None
    osiris_run_usd: Annotated[float, Field(gt=0)] | None = None
    anthropic_api_key: SecretStr = SecretStr("")
    anthropic_base_url: str = ""
    openai_api_key: SecretStr = SecretStr("")
    openai_base_url: str = ""
    google_api_key: SecretStr = SecretStr("")
    google_base_url: str = ""
    openai_compatible_base_url: str = ""
    openai_compatible_api_key: SecretStr = SecretStr("")
    osiris_toolchains: tuple[Path, ...] = ()
    osiris_sandbox: Literal["strong", "weak"] = "strong"
    osiris_sandbox_memory_gib: Annotated[float, Field(ge=0.1, le=1024)] = 2.0
    osiris_sandbox_disk_gib: Annotated[float, Field(ge=0.1, le=1024)] = 2.0
    osiris_network: Literal["none", "setup", "agent"] = "setup"
    osiris_runs: Annotated[int, Field(ge=1, le=64)] = 2
    osiris_repository_runs: Annotated[int, Field(ge=1, le=64)] | None = None
    osiris_github_limits: Literal["on", "off"] = "on"
    osiris_keep_days: Annotated[int, Field(ge=4, le=3650)] = 30
    osiris_cache_gib: Annotated[float, Field(gt=0)] = 20.0

    @field_validator("osiris_toolchains", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator(
        "osiris_data_dir", "osiris_toolchains", "github_private_key_file", mode="after"
    )
    @classmethod
    def _make_absolute(cls, value: Any) -> Any:
        """Return absolute paths, so that processes started in another directory find the same
        place."""
        if isinstance(value, tuple):
            return tuple(path.expanduser().absolute() for path in value)
        return value and value.expanduser().absolute()

    @field_validator("osiris_model", "osiris_second_model")
    @classmethod
    def _check_model(cls, value: str) -> str:
        if value and not (":" in value and value.partition(":")[2]):
            raise ValueError("must be VENDOR:MODEL, for example anthropic:claude-sonnet-5")
        return value

    @field_validator(
        "anthropic_api_key", "openai_api_key", "google_api_key", "openai_compatible_api_key"
    )
    @classmethod
    def _check_key(cls, key: SecretStr) -> SecretStr:
        word = key.get_secret_value().strip()
        if not re.fullmatch(r"[!-~]*", word):
            raise ValueError("must be one word of ASCII characters")
        return SecretStr(word)

    @field_validator(
        "anthropic_base_url", "openai_base_url", "google_base_url", "openai_compatible_base_url"
    )
    @classmethod
    def _check_url(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", url):
            raise ValueError(
                "must be an address like https://HOST/PATH, without a user name or password"
            )
        return url

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value() and not re.fullmatch(
            r"(rediss?|unix)://\S+", url.get_secret_value()
        ):
            raise ValueError("must be an address like redis://HOST:6379/0")
        return url

    @property
    def private_key(self) -> str:
        """Return the App's key in PEM. Raises Refused when its file cannot be read."""
        if self.github_private_key_file is None:
            return self.github_private_key.get_secret_value().replace("\\n", "\n")
        try:
            return self.github_private_key_file.read_text()
        except OSError as error:
            raise Refused(f"GITHUB_PRIVATE_KEY_FILE cannot be read: {error.strerror}") from None

    @property
    def database(self) -> str:
        """Return the SQLAlchemy URL of the database."""
        return (
            self.database_url.get_secret_value()
            or f"sqlite+aiosqlite:///{self.osiris_data_dir / 'osiris.db'}"
        )

    @property
    def database_without_password(self) -> str:
        """Return the database URL without its password, for display."""
        return re.sub(r"(://[^:@/]*):[^@/]*@", r"\1:***@", self.database)

    @property
    def is_embedded(self) -> bool:
        """Return whether the database is SQLite, a file on this machine."""
        return self.database.startswith("sqlite")

    def list_vendors(self) -> dict[str, tuple[str, str]]:
        """Return the configured model vendors, each with its key and its URL ("": the vendor's
        own)."""
        keys = {
            "anthropic": (self.anthropic_api_key, self.anthropic_base_url),
            "openai": (self.openai_api_key, self.openai_base_url),
            "google": (self.google_api_key, self.google_base_url),
        }
        found = {
            name: (key.get_secret_value(), url)
            for name, (key, url) in keys.items()
            if key.get_secret_value()
        }
        if self.openai_compatible_base_url:
            key = self.openai_compatible_api_key.get_secret_value()
            found["openai-compatible"] = (key, self.openai_compatible_base_url)
        return found

    def list_missing(self) -> list[str]:
        """Return the names of missing settings without which Osiris cannot work."""
        wanted = {
            "GITHUB_APP_ID": self.github_app_id,
            "GITHUB_PRIVATE_KEY or GITHUB_PRIVATE_KEY_FILE": (
                self.github_private_key.get_secret_value() or self.github_private_key_file
            ),
            "GITHUB_WEBHOOK_SECRET": self.github_webhook_secret.get_secret_value(),
            "OSIRIS_MODEL": self.osiris_model,
        }
        return [name for name, value in wanted.items() if not value]

    def list_secrets(self) -> list[str]:
        """Return every value that must never be written anywhere."""
        values = {
            name: value for name, value in self.__dict__.items() if isinstance(value, SecretStr)
        }
        urls = [values.pop(name).get_secret_value() for name in ("database_url", "redis_url")]
        passwords = [match[1] for url in urls if (match := re.search(r"://[^:@/]*:([^@/]+)@", url))]
        return [
            *(secret for value in values.values() if (secret := value.get_secret_value())),
            *passwords,
        ]


_TOOLS = re.compile(
    r"(?i)path|home|xdg_config_home|(?:https?|all|no)_proxy|ssl_cert_\w+|(?:pip|npm_config|cargo|rustup)_\w+"
    r"|go(?:env|flags|insecure|nosumdb|noproxy|path|private|proxy|root|sumdb|toolchain)"
)


def tools_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment variables that this machine's package tools use.

    None of Osiris's own settings is among them.
    """
    given = os.environ if environ is None else environ
    return {name: value for name, value in given.items() if _TOOLS.fullmatch(name)}


def load_settings(
    environ: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")
) -> Settings:
    """Return the settings from `env_file` (None: no file) and the environment, which takes
    precedence.

    An empty value counts as not set. Raises Refused, naming the variable and the reason, for an
    unknown OSIRIS_ name or an invalid value.
    """
    found = dotenv_values(env_file) if env_file else {}
    stored = {name: value for name, value in found.items() if value is not None}
    given = {
        name: value
        for name, value in {**stored, **(os.environ if environ is None else environ)}.items()
        if value
    }
    known = {name.upper(): name for name in Settings.model_fields}
    for name in given:
        if name.startswith("OSIRIS_") and name not in known:
            raise Refused(
                f"{name} is not a setting of Osiris; known are: {', '.join(sorted(known))}"
            )
    try:
        return Settings(**{field: given[name] for name, field in known.items() if name in given})
    except ValidationError as error:
        first = error.errors()[0]
        raise Refused(
            f"{str(first['loc'][0]).upper()} {first['msg'].removeprefix('Value error, ')}"
        ) from None
