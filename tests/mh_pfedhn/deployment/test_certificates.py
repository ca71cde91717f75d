"""Certificates and keys: what they are good for, and that none is ever overwritten."""

import datetime
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store

from common.errors import UserError
from mh_pfedhn.deployment.certificates import _general_name, make_certs


def read(folder, name):
    return x509.load_pem_x509_certificate((folder / name).read_bytes())


@pytest.mark.parametrize("host", ["fl.example.org", "192.0.2.7", "localhost", "127.0.0.1"])
def test_the_servers_certificate_verifies_for_each_of_its_hosts(made, host):
    folder, _ = made
    subject = _general_name(host)
    verifier = PolicyBuilder().store(Store([read(folder, "ca.crt")])).build_server_verifier(subject)
    assert len(verifier.verify(read(folder, "server.pem"), [])) == 2


def test_the_servers_certificate_does_not_verify_for_another_host(made):
    folder, _ = made
    other = x509.DNSName("other.example.org")
    verifier = PolicyBuilder().store(Store([read(folder, "ca.crt")])).build_server_verifier(other)
    with pytest.raises(x509.verification.VerificationError):
        verifier.verify(read(folder, "server.pem"), [])


def test_certificates_are_valid_for_two_years_and_the_output_says_so(made):
    folder, text = made
    ends = read(folder, "server.pem").not_valid_after_utc
    assert abs(ends - datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=730)) < datetime.timedelta(hours=1)
    assert "two years" in text
    assert f"{ends:%Y-%m-%d}" in text
    for part in ("to the server", "to each site", "to nobody       ca.key"):
        assert part in text


def test_private_files_are_for_their_owner_only(made):
    folder, _ = made
    for name in ("ca.key", "server.key", "sites/hospital-a", "sites/hospital-b"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_a_sites_keys_are_a_pair_in_openssh_form(made):
    folder, _ = made
    private = (folder / "sites/hospital-a").read_bytes()
    public = (folder / "sites/hospital-a.pub").read_bytes()
    assert private.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert public.startswith(b"ecdsa-sha2-nistp384 ")
    assert public.endswith(b" hospital-a\n")
    assert load_ssh_private_key(private, None).public_key() == load_ssh_public_key(public)
    assert public != (folder / "sites/hospital-b.pub").read_bytes()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_call_adds_the_missing_keys_and_changes_nothing_else(tmp_path):
    make_certs(tmp_path, ["fl.example.org"], ["a"])
    before = contents(tmp_path)
    assert "made sites/b, sites/b.pub." in make_certs(tmp_path, [], ["a", "b"])
    after = contents(tmp_path)
    assert {path.name for path in after.keys() - before.keys()} == {"b", "b.pub"}
    assert {path: after[path] for path in before} == before
    assert "everything was there already" in make_certs(tmp_path, ["fl.example.org"], ["a", "b"])


def test_the_authority_is_kept_when_the_servers_certificate_is_made_again(tmp_path):
    make_certs(tmp_path, ["one.example.org"], [])
    authority = (tmp_path / "ca.crt").read_bytes()
    (tmp_path / "server.pem").unlink()
    (tmp_path / "server.key").unlink()
    make_certs(tmp_path, ["two.example.org"], [])
    assert (tmp_path / "ca.crt").read_bytes() == authority
    read(tmp_path, "server.pem").verify_directly_issued_by(read(tmp_path, "ca.crt"))


def test_a_public_key_alone_is_a_site_that_keeps_its_private_key_to_itself(tmp_path):
    make_certs(tmp_path, ["fl.example.org"], ["a"])
    (tmp_path / "sites/a").unlink()
    make_certs(tmp_path, [], ["a"])
    assert not (tmp_path / "sites/a").exists()


def test_a_lost_public_key_is_derived_from_the_private_one(tmp_path):
    make_certs(tmp_path, ["fl.example.org"], ["a"])
    public = (tmp_path / "sites/a.pub").read_bytes()
    (tmp_path / "sites/a.pub").unlink()
    make_certs(tmp_path, [], ["a"])
    assert (tmp_path / "sites/a.pub").read_bytes() == public


@pytest.mark.parametrize(
    ("hosts", "sites", "gone", "part"),
    [
        (["other.example.org"], [], [], "but not for other.example.org"),
        ([], [], ["server.pem", "server.key"], "--host is missing"),
        (["h"], [], ["server.pem"], "server.key exists, but not server.pem"),
        (["h"], [], ["server.pem", "server.key", "ca.key"], "exists, but not ca.key"),
        (["http://h"], [], [], "--host is 'http://h'"),
        (["h:1"], [], [], "--host is 'h:1'"),
        ([], ["a/b"], [], "--site is 'a/b'"),
        ([], [".hidden"], [], "--site is '.hidden'"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(tmp_path, hosts, sites, gone, part):
    make_certs(tmp_path, ["fl.example.org"], [])
    for name in gone:
        (tmp_path / name).unlink()
    before = contents(tmp_path)
    with pytest.raises(UserError, match=part):
        make_certs(tmp_path, hosts, sites)
    assert contents(tmp_path) == before
