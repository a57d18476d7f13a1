"""Redaction of secrets, and texts that only look like secrets. The secrets are invented, and put
together so that no scanner reports them."""

import base64

import pytest

from osiris.core.ports.sandbox import Result
from osiris.core.redaction import Redactor

JWT = "ey" + "JhbGciOiJSUzI1NiJ9.ey" + "JpYXQiOjE3MDAwMDAwMDB9.c2lnbmF0dXJlLW9mLWl0"
LETTERS = "Ab1" * 12
PEM = f"-----BEGIN RSA {'PRIVATE'} KEY-----\nMIIE\nabc=\n-----END RSA {'PRIVATE'} KEY-----"


@pytest.mark.parametrize(
    "secret",
    [
        "ghs_" + LETTERS,
        f"ghs_123456_{JWT}",
        "github_pat_11AAAAAAA0" + LETTERS,
        "glpat-" + LETTERS,
        "AKIA" + "ABCDEFGH23456789",
        "sk-ant-" + LETTERS,
        "sk-proj-" + LETTERS,
        "sk_live_" + LETTERS,
        "AIza" + LETTERS[:35],
        "xoxb-12345678901-" + LETTERS,
        "xapp-1-" + LETTERS,
        "npm_" + LETTERS,
        "hf_" + LETTERS,
        "123456789:" + LETTERS[:35],
        JWT,
        PEM,
        PEM.replace("\n", "\\n"),
    ],
)
def test_what_is_shaped_like_a_secret_is_hidden(secret: str):
    assert Redactor()(f"before {secret}, after") == "before ***, after"


@pytest.mark.parametrize("secret", ["sk-" + LETTERS, JWT])
def test_a_secret_is_hidden_in_the_middle_of_a_run_of_words_with_dashes(secret: str):
    assert Redactor()(f"the-key-of-mine-{secret} is long") == "*** is long"


@pytest.mark.parametrize("before", ["sk-é-", "é-", "é", "日本-", "ſk-"])
def test_a_secret_is_hidden_behind_letters_that_no_secret_has(before: str):
    assert LETTERS not in Redactor()(f"{before}sk-ant-{LETTERS}")
    assert JWT not in Redactor()(f"{before.replace('sk', 'eyJ')}{JWT}")


@pytest.mark.parametrize("start", ["sk-", "eyJ"])
def test_the_first_start_of_a_run_takes_all_of_it(start: str):
    assert Redactor()(f"{start}{start}-" * 3 + "sk-1" + "a" * 20) == "***"


def test_a_key_that_was_cut_off_is_hidden_to_the_end():
    assert Redactor()(f"key: {PEM[:40]}") == "key: ***"


def test_a_header_keeps_its_name():
    assert Redactor()("Authorization: Bearer abcdefghij0123456789") == "Authorization: Bearer ***"


@pytest.mark.parametrize(
    "text",
    [
        "sk-folding-cube-with-many-words is a class of CSS",
        "ghost_writer and github_path",
        "Authorization: Bearer ${TOKEN}",
        "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "-----BEGIN CERTIFICATE-----",
        "commit 0123456789abcdef0123456789abcdef01234567",
    ],
)
def test_what_only_looks_a_little_like_one_stays(text: str):
    assert Redactor()(text) == text


def test_a_known_secret_is_hidden_in_whatever_way_it_is_written():
    secret = 'hunter22/"x" y'
    hide = Redactor([secret, "hunter22", "short"])
    encoded = base64.b64encode(secret.encode()).decode()
    text = f'{secret} | hunter22/\\"x\\" y | hunter22%2F%22x%22%20y | {encoded} | hunter22 | short'
    assert hide(text) == "*** | *** | *** | *** | *** | short"


def test_every_text_within_a_value_is_redacted():
    value = {"body": "my ghs_1234567890abcdef", "lines": [1, None, ("hunter22", True)]}
    assert Redactor(["hunter22"]).redact_value(value) == {
        "body": "my ***",
        "lines": [1, None, ["***", True]],
    }


def test_a_result_knows_that_its_output_was_cut():
    fields = {
        "exit_code": 0,
        "output": b"ab",
        "timed_out": False,
        "out_of_memory": False,
        "seconds": 0.1,
    }
    assert Result(total=3, **fields).truncated
    assert not Result(total=2, **fields).truncated
