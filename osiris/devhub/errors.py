"""The errors of the hub's API: a status, a sentence, and GitHub's list of field errors."""

from collections.abc import Mapping, Sequence

from osiris.core.errors import Refused


class ApiError(Refused):
    """The error of a request that GitHub would refuse; the text is GitHub's own message."""

    def __init__(
        self, status: int, message: str, errors: Sequence[Mapping[str, str] | str] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.errors = list(errors)

    @property
    def sentence(self) -> str:
        """The text for a person: the messages of the field errors, or else the message."""
        said = [
            error if isinstance(error, str) else error.get("message", "") for error in self.errors
        ]
        return " ".join(filter(None, said)) or str(self)


class ApiRateLimited(ApiError):
    """The error of a caller over its hourly limit; `headers` contain the limit and its reset."""

    def __init__(self, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(403, message)
        self.headers = headers


class ApiMoved(ApiError):
    """The answer to a request for something that is at another URL of the API now."""

    def __init__(self, url: str) -> None:
        super().__init__(301, "Moved Permanently")
        self.url = url


def not_found_error() -> ApiError:
    return ApiError(404, "Not Found")


def unauthorized_error() -> ApiError:
    return ApiError(401, "Bad credentials")


def forbidden_error() -> ApiError:
    return ApiError(403, "Resource not accessible by integration")


def invalid_field_error(
    resource: str, field: str, code: str = "invalid", message: str = ""
) -> ApiError:
    """Return GitHub's 422 for one field of one resource."""
    error = {"resource": resource, "field": field, "code": code}
    if message:
        error |= {"message": message}
    return ApiError(422, "Validation Failed", [error])


def unprocessable_error(message: str) -> ApiError:
    """Return GitHub's 422 of pull requests and reviews, whose errors are sentences."""
    return ApiError(422, "Unprocessable Entity", [message])


def anchor_error(field: str, problem: str, *, in_review: bool) -> ApiError:
    """Return GitHub's 422 for the place of a comment: a sentence for a comment of a review, an
    error of a field for a single comment."""
    if in_review:
        words = field.replace("_", " ")
        return unprocessable_error(f"Pull request review thread {words} {problem}")
    name = f"pull_request_review_thread.{field}"
    return invalid_field_error("PullRequestReviewComment", name, "custom", f"{name} {problem}")


def validation_error(message: str) -> ApiError:
    """Return GitHub's 422 that is one sentence."""
    return ApiError(422, message)
