"""Content Credentials: signed last, valid for c2pa, and invisible to everything else."""

from __future__ import annotations

import builtins
import datetime
import io
import json

import pytest

import studio
from studio.errors import UsageError
from studio.media.label import COMPOSITE, Label
from studio.media.share import shared
from studio.media.signing import FORMATS, Signer
from tests.studio.media.test_label import media
from tests.studio.media.test_share import with_recipe


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "c2pa":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="signing needs the package `c2pa-python`") as caught:
        media("a.png").labelled(Label()).save(tmp_path / "a.png", signer=Signer(tmp_path / "c", tmp_path / "k"))
    assert "multimodal-studio[c2pa]" in caught.value.hint
    assert not (tmp_path / "a.png").exists()


def certificate(subject, key, issuer, authority_key, *, authority):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(common):
        named = {NameOID.ORGANIZATION_NAME: "Test", NameOID.COMMON_NAME: common}
        return x509.Name([x509.NameAttribute(kind, value) for kind, value in named.items()])

    now = datetime.datetime.now(datetime.UTC)
    uses = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
            "decipher_only")  # fmt: skip
    usage = x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority,
                          **dict.fromkeys(uses, False))  # fmt: skip
    made = (
        x509.CertificateBuilder(name(issuer), name(subject), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .add_extension(usage, critical=True)
    )
    if not authority:
        mail = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        made = made.add_extension(mail, critical=False)
    return made.sign(authority_key, hashes.SHA256())


@pytest.fixture(scope="session")
def signer(tmp_path_factory):
    """A signer with a certificate of an authority of our own, whose certificate is in `authority.pem` beside it."""
    pytest.importorskip("c2pa")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("keys")
    ours, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificate("root", theirs, "root", theirs, authority=True)
    leaf = certificate("leaf", ours, "root", theirs, authority=False)
    pem = serialization.Encoding.PEM
    (folder / "authority.pem").write_bytes(root.public_bytes(pem))
    (folder / "chain.pem").write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(ours.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return Signer(folder / "chain.pem", folder / "key.pem")


def read(file, kind, signer):
    """The state of the manifest for c2pa, which trusts our authority, and the manifest."""
    import c2pa

    settings = {"trust": {"user_anchors": signer.certificate.with_name("authority.pem").read_text()}}
    with (
        c2pa.Context(c2pa.Settings.from_dict(settings)) as context,
        c2pa.Reader(kind, io.BytesIO(file), context=context) as reader,
    ):
        return reader.get_validation_state(), json.loads(reader.json())


@pytest.mark.parametrize("name", ["a.png", "a.avif", "v.webp", "v.gif", "v.mp4", "s.wav", "s.flac", "s.mp3"])
def test_c2pa_trusts_a_signed_file_and_studio_reads_it_as_before(name, signer, tmp_path):
    made = with_recipe(media(name)).labelled(Label(COMPOSITE))
    made.save(tmp_path / name, signer=signer)
    made.save(tmp_path / f"plain-{name}")
    file = (tmp_path / name).read_bytes()
    state, manifest = read(file, FORMATS[name[1:]], signer)
    assert state == "Trusted"
    assert COMPOSITE in json.dumps(manifest)
    assert "secret" not in json.dumps(manifest)
    opened = type(made).open(tmp_path / name)
    assert opened == type(made).open(tmp_path / f"plain-{name}")
    assert opened.label == made.label
    assert opened.recipe == (None if name == "s.wav" else made.recipe)
    assert b"c2pa" not in shared(file)[0], "a copy to share is another file, so it has no signature"
    broken = bytearray(file)
    broken[file.find(made.label.id.encode())] ^= 1
    assert read(bytes(broken), FORMATS[name[1:]], signer)[0] == "Invalid"


def test_what_cannot_sign_is_said_before_anything_is_written(signer, tmp_path):
    made = media("a.png").labelled(Label())
    other = tmp_path / "other"
    other.write_text("hello")
    wrong = {
        "is not a private key in PEM form without a password": Signer(signer.certificate, other),
        "has no certificate in PEM form": Signer(other, signer.key),
        "cannot sign": Signer(signer.certificate.with_name("authority.pem"), signer.key),
        "cannot read": Signer(signer.certificate, tmp_path / "gone"),
    }
    for reason, each in wrong.items():
        with pytest.raises(UsageError, match=reason):
            made.save(tmp_path / "a.png", signer=each)
    with pytest.raises(UsageError, match="only media with an AI label can be signed"):
        media("a.png").save(tmp_path / "a.png", signer=signer)
    with pytest.raises(UsageError, match=r"\.ogg files cannot be signed"):
        media("s.ogg").labelled(Label()).save(tmp_path / "a.ogg", signer=signer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_the_store_keeps_files_without_signature(signer, sample_plugin):
    with studio.Studio(plugins=[sample_plugin], device="cpu") as host:
        made = host.generate("noise", prompt="x", seed=1)
        assert b"c2pa" not in made.path.read_bytes()
