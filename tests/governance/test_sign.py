"""Signed seals: who vouches for a head, and that nobody else can say so."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runbook_lib.dossier import seal
from runbook_lib.dossier.seal import ChainHead
from runbook_lib.model.usage import install_command
from runbook_lib.store.archive import NOTES, Archive
from tests.kit.dossiers import COUNT, Verify, cut_off, fill
from tests.kit.keys import AOKI, KNOWN, pem


def configured(folder: Path, key: str = 'key_file = "key.pem"', keys: dict[str, str] = KNOWN) -> None:
    named = "".join(f'{name} = "{public}"\n' for name, public in keys.items())
    (folder / "runbook.toml").write_text(f"[sign]\n{key}\n[sign.keys]\n{named}")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A dossier, and a folder to work in whose runbook.toml has Aoki's key."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key.pem").write_bytes(pem(AOKI))
    configured(tmp_path)
    archive = Archive(str(tmp_path / "out"), "INC-1")
    fill(archive)
    return archive


def test_a_signed_seal_is_one_word_and_says_who_signed_it(archive: Archive, verify: Verify) -> None:
    told = seal.seal_text(archive)
    assert told == seal.seal_text(archive) and len(told.split()) == 1
    assert told.startswith(f"{seal.chain_head(archive)}:aoki:")
    assert not set(told) & set(" '\"$&;|<>*?#~`\\"), "a shell takes it as it stands"
    assert [str(h) for h in seal.find_seals(f"<code>{told}</code>, **{told}**. {told}")] == [told] * 3
    for more in ([], ["--signed"]):
        code, out, err = verify(archive, "--checkpoint", told, *more)
        assert (code, err) == (0, "")
        assert f"Signed by aoki, the signature is valid: {seal.chain_head(archive)}\n" in out
        assert out.splitlines()[-1] == told, "what was verified is signed by whoever has a key"


def forgeries(told: str) -> dict[str, tuple[str, str]]:
    """Seals that were made of a signed one, and what is said of each."""
    head, by, signature = told.rsplit(":", 2)
    digest = head.rsplit(":", 1)[1]
    other = head.replace(digest, "0" * 32)
    return {
        "altered-digest": (f"{other}:{by}:{signature}", "the signature is not by aoki"),
        "altered-lines": (f"{head.replace(':4.4.4:', ':4.4.3:')}:{by}:{signature}", "the signature is not by aoki"),
        "of-another": (f"{head}:sato:{signature}", "the signature is not by sato"),
        "unknown-name": (f"{head}:mori:{signature}", "the signer mori is not in [sign.keys]"),
        "cut": (f"{head}:{by}:{signature[:-1]}", "the signature is not by aoki"),
        "cut-to-nothing": (f"{head}:{by}:", "the signature is not by aoki"),
        "cut-within-the-name": (f"{head}:ao", "the signer ao is not in"),
        "longer": (f"{told}AA", "the signature is not by aoki"),
        "no-signature": (f"{head}:{by}:{'A' * 86}", "the signature is not by aoki"),
    }


@pytest.mark.parametrize("kind", list(forgeries("seal:I:4.4.4:0:a:b")))
def test_a_forged_signature_is_ignored(kind: str, archive: Archive, verify: Verify) -> None:
    forged, says = forgeries(seal.seal_text(archive))[kind]
    code, out, err = verify(archive, "--checkpoint", forged)
    assert code == 3 and says in err.splitlines()[0] and "not everything is covered by a checkpoint" in out
    assert "manifest.jsonl lines 1 to 4: no checkpoint covers" in err and "the signature is valid" not in out
    code, out, err = verify(archive, "--checkpoint", forged, "--checkpoint", seal.seal_text(archive))
    assert code == 3 and "no checkpoint" not in err, "beside a good one it is still named"


def test_the_seal_of_another_incident_is_no_checkpoint(archive: Archive, verify: Verify) -> None:
    other = Archive(archive.output, "INC-2")
    fill(other)
    told = seal.seal_text(other)
    code, _, err = verify(archive, "--checkpoint", told)
    assert code == 64 and "contains no seal of INC-1; it contains seals of INC-2" in err
    code, _, err = verify(archive, "--checkpoint", told.replace("INC-2", "INC-1"))
    assert code == 3 and "the signature is not by aoki" in err


def test_a_key_that_is_none_of_the_known_is_named(archive: Archive, tmp_path: Path, verify: Verify) -> None:
    told = seal.seal_text(archive)
    configured(tmp_path, keys={"aoki": KNOWN["sato"]})  # the name, with another's key
    code, _, err = verify(archive, "--checkpoint", told)
    assert code == 3 and "the signature is not by aoki" in err
    configured(tmp_path, key="", keys={})
    code, _, err = verify(archive, "--checkpoint", told, "--lang", "ja")
    assert code == 3 and "署名者 aoki は [sign.keys] にない" in err


def test_a_signature_that_holds_makes_no_changed_dossier_whole(archive: Archive, verify: Verify) -> None:
    told = seal.seal_text(archive)
    cut_off(archive, NOTES, COUNT - 1)
    code, out, err = verify(archive, "--checkpoint", told)
    assert code == 2 and "notes.jsonl had 4 lines when this checkpoint was made, and has 3 now" in err
    assert "Signed by aoki" in out and out.count("seal:") == 1, "what was changed is not signed"


def test_a_seal_without_a_signature_counts_unless_one_is_asked_for(
    archive: Archive, tmp_path: Path, verify: Verify
) -> None:
    stripped = str(seal.chain_head(archive))
    assert verify(archive, "--checkpoint", stripped)[0] == 0
    code, _, err = verify(archive, "--checkpoint", stripped, "--signed")
    assert code == 3 and ": not signed:" in err
    mail = f"{stripped}\n{seal.seal_text(archive)}\n"
    (tmp_path / "mail.txt").write_text(mail)
    assert seal.read_checkpoints("INC-1", str(tmp_path / "mail.txt")) == seal.find_seals(mail)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ('key_file = "nothing.pem"', "sign.key_file: cannot read nothing.pem (No such file or directory)"),
        ('key_file = "text.pem"', "no unencrypted Ed25519 key in PEM"),
        ('key_file = "shut.pem"', "no unencrypted Ed25519 key in PEM"),
        ('key_file = "curve.pem"', "no unencrypted Ed25519 key in PEM"),
        ('key_file = "mori.pem"', "is not listed in [sign.keys]"),
        ('key_command = ["sh", "-c", "cat key.pem; exit 7"]', "sign.key_command: it ended with exit code 7"),
        ('key_command = ["nothing-of-that-name"]', "sign.key_command: it cannot be started (No such file"),
        ('key_command = ["true"]', "no unencrypted Ed25519 key in PEM"),
    ],
)
def test_a_key_that_signs_nothing_leaves_the_seal_and_says_why(
    key: str, says: str, archive: Archive, tmp_path: Path
) -> None:
    (tmp_path / "text.pem").write_bytes(b"s3cret")
    (tmp_path / "shut.pem").write_bytes(pem(AOKI, b"s3cret"))
    (tmp_path / "curve.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    (tmp_path / "mori.pem").write_bytes(pem(Ed25519PrivateKey.generate()))
    configured(tmp_path, key)
    told = seal.seal_text(archive)
    assert says in told and "\n" not in told and "PRIVATE" not in told and "s3cret" not in told
    assert seal.find_seals(told) == [seal.chain_head(archive)]


def test_a_command_may_print_the_key(archive: Archive, tmp_path: Path) -> None:
    configured(tmp_path, 'key_command = ["cat", "key.pem"]')
    assert f"{seal.chain_head(archive)}:aoki:" in seal.seal_text(archive)


def test_without_the_package_it_is_one_line(archive: Archive, monkeypatch: pytest.MonkeyPatch, verify: Verify) -> None:
    told = seal.seal_text(archive)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    code, out, err = verify(archive, "--checkpoint", told)
    assert (code, out) == (64, "")
    assert err == f"runbook: signatures need the package cryptography: {install_command('sign')}\n"
    bare = str(seal.chain_head(archive))
    assert seal.seal_text(archive).startswith(f"{bare} (not signed: signatures need the package cryptography")
    assert verify(archive, "--checkpoint", bare)[0] == 0, "a seal that nobody signed needs no package"


def test_openssl_makes_the_keys_and_checks_the_signature(archive: Archive, tmp_path: Path) -> None:
    """As docs/howto/verify.md and docs/security.md have it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def openssl(*arguments: str) -> str:
        return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", "key.pem")
    written = openssl("pkey", "-in", "key.pem", "-pubout")
    configured(tmp_path, keys={"aoki": written.splitlines()[1]})
    (told,) = seal.find_seals(seal.seal_text(archive))
    assert told == ChainHead("INC-1", (COUNT,) * 3, told.digest, "aoki", told.signature)
    (tmp_path / "pub.pem").write_text(written)
    (tmp_path / "text").write_text(str(told.bare))
    (tmp_path / "sig").write_bytes(base64.urlsafe_b64decode(told.signature + "=="))
    assert "Successfully" in openssl(
        "pkeyutl", "-verify", "-pubin", "-inkey", "pub.pem", "-rawin", "-in", "text", "-sigfile", "sig"
    )
