"""`streamvos keys`: made once, shown without the secret."""

from __future__ import annotations

import json
import stat

from streamvos.pipeline.wire.security import read_secret_key


def test_keys_are_made_and_shown(call, tmp_path):
    answer = call("keys", "new", tmp_path / "keys" / "door")
    assert answer.code == 0, answer
    public_path, secret_path = tmp_path / "keys" / "door.key", tmp_path / "keys" / "door.key_secret"
    public, secret = (key.decode() for key in read_secret_key(secret_path))
    assert answer.out.splitlines() == [f"public  {public_path}  {public}", f"secret  {secret_path}"]
    assert stat.S_IMODE(secret_path.stat().st_mode) == 0o600

    shown = call("keys", "show", tmp_path / "keys")
    assert shown.code == 0
    assert [line.split()[:2] for line in shown.out.splitlines()] == [
        [str(public_path), public],
        [str(secret_path), public],
    ]
    listed = json.loads(call("keys", "show", tmp_path / "keys", "--json").out)["keys"]
    assert [one["secret"] for one in listed] == [False, True]
    assert secret not in answer.out + answer.err + shown.out + shown.err


def test_json_names_the_files_and_not_the_secret(call, tmp_path):
    report = json.loads(call("keys", "new", tmp_path / "laptop", "--json").out)
    public, secret = (key.decode() for key in read_secret_key(report["secret_file"]))
    assert report["public_key"] == public
    assert secret not in json.dumps(report)


def test_what_cannot_be_is_told_in_one_line(call, tmp_path):
    assert call("keys", "new", tmp_path / "door").code == 0
    assert "is there already" in call("keys", "new", tmp_path / "door").error
    assert "expected a name" in call("keys", "new", tmp_path / "two words").error
    assert "cannot read" in call("keys", "show", tmp_path / "absent.key").error
    (tmp_path / "empty").mkdir()
    assert "there are no keys" in call("keys", "show", tmp_path / "empty").error
    (tmp_path / "door.key_secret").chmod(0o644)
    assert "chmod 600" in call("keys", "show", tmp_path / "door.key_secret").error
