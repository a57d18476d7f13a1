"""The administration of repositories: archiving, renaming, transferring, deleting."""

from osiris.devhub.errors import invalid_field_error
from osiris.devhub.git_repository import GitRepository
from osiris.devhub.models import Installation, Repo, User
from osiris.devhub.world import World


def archive_repo(world: World, repo: Repo, by: User, archived: bool) -> None:
    """Make a repository read-only, or writable again."""
    if repo.archived == archived:
        return
    repo.archived = archived
    world.publish_event("repository", "archived" if archived else "unarchived", repo, by)


def rename_repo(world: World, repo: Repo, by: User, name: str) -> None:
    """Give a repository another name; the old name redirects to it until another repository takes
    that name."""
    if name == repo.name:
        return
    old = repo.name
    _move_repo(world, repo, repo.owner, name)
    world.publish_event("repository", "renamed", repo, by, old_name=old)


def transfer_repo(world: World, repo: Repo, by: User, owner: User) -> list[Installation]:
    """Give a repository to another account. Return the installations that lost it."""
    old = repo.owner
    lost = [one for one in world.installations.values() if repo in one.repos]
    _move_repo(world, repo, owner, repo.name)
    for installation in lost:
        installation.repos.remove(repo)
    world.publish_event("repository", "transferred", repo, by, old_owner=old)
    return lost


def delete_repo(world: World, repo: Repo, by: User) -> None:
    world.publish_event("repository", "deleted", repo, by)
    del world.repos[repo.full_name.lower()]
    world.moved = {name: one for name, one in world.moved.items() if one is not repo}
    for installation in world.installations.values():
        if repo in installation.repos:
            installation.repos.remove(repo)


def _move_repo(world: World, repo: Repo, owner: User, name: str) -> None:
    """Move a repository to another full name, on disk as well."""
    old = repo.full_name.lower()
    new = f"{owner.login}/{name}".lower()
    if not name.strip() or "/" in name or world.repos.get(new, repo) is not repo:
        raise invalid_field_error(
            "Repository", "name", "custom", "name already exists on this account"
        )
    path = repo.git.path.parent.parent / owner.login / f"{name}.git"
    path.parent.mkdir(parents=True, exist_ok=True)
    repo.git.path.rename(path)
    del world.repos[old]
    repo.owner = owner
    repo.name = name
    repo.git = GitRepository(path)
    world.repos[new] = repo
    world.moved[old] = repo
    world.moved.pop(new, None)
