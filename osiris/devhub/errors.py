"""How the hub says no: a status, a sentence, and GitHub's list of field errors."""

from collections.abc import Mapping, Sequence

from osiris.core.errors import Refused


class Denied(Refused):
    """A request that GitHub would answer with an error; the text is GitHub's own message."""

    def __init__(self, status: int, message: str, errors: Sequence[Mapping[str, str] | str] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.errors = list(errors)

    @property
    def sentence(self) -> str:
        """What a person reads: the message, or what exactly was wrong with the fields."""
        said = [error if isinstance(error, str) else error.get("message", "") for error in self.errors]
        return " ".join(filter(None, said)) or str(self)


class Limited(Denied):
    """Too many requests for this hour; `headers` say how many, and until when."""

    def __init__(self, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(403, message)
        self.headers = headers


def not_found() -> Denied:
    return Denied(404, "Not Found")


def unauthorized() -> Denied:
    return Denied(401, "Bad credentials")


def forbidden() -> Denied:
    return Denied(403, "Resource not accessible by integration")


def invalid(resource: str, field: str, code: str = "invalid", message: str = "") -> Denied:
    """GitHub's 422 for one field of one resource."""
    error = {"resource": resource, "field": field, "code": code}
    if message:
        error |= {"message": message}
    return Denied(422, "Validation Failed", [error])


def unprocessable(message: str) -> Denied:
    """GitHub's 422 whose errors are sentences: that of pull requests and reviews."""
    return Denied(422, "Unprocessable Entity", [message])


def unfit(message: str) -> Denied:
    """GitHub's 422 that is one sentence."""
    return Denied(422, message)
