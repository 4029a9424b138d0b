//! Who is believed to be a host: real keys and certificates of ssh-keygen, shown by a real sshd.

use std::{process::Command, sync::Arc};

use super::{Learning, Sshd, exec, keygen, realm};
use crate::{
    model::{
        host::Host,
        host_key::{HostKeys, Policy},
    },
    ports::link::LinkError,
    ssh::SshLimits,
};

impl Sshd {
    /// Runs ssh-keygen on files of this server.
    fn sign(&self, args: &[&str]) {
        let done = Command::new("ssh-keygen").arg("-q").args(args).current_dir(self.dir.path()).status().unwrap();
        assert!(done.success(), "{args:?}");
    }

    fn key(&self, name: &str, args: &[&str]) {
        keygen(&self.dir.path().join(name), args);
    }

    /// Algorithm and blob of a `.pub` file.
    fn public(&self, name: &str) -> String {
        self.text(&format!("{name}.pub")).split(' ').take(2).collect::<Vec<_>>().join(" ").trim().to_owned()
    }

    fn write_known(&self, lines: &[String]) {
        std::fs::write(self.dir.path().join("known_hosts"), lines.join("\n")).unwrap();
    }

    fn host_by(&self, keys: HostKeys) -> Host {
        let mut host = self.host();
        host.name = "web-1".to_owned();
        host.ssh.host_keys = Some(keys);
        host
    }

    fn fingerprint(&self, name: &str) -> String {
        let args = ["-lf", &format!("{name}.pub")];
        let said = Command::new("ssh-keygen").args(args).current_dir(self.dir.path()).output().unwrap();
        String::from_utf8(said.stdout).unwrap().split(' ').nth(1).unwrap().to_owned()
    }

    /// What the log says of logins: nothing, where nobody was to try one.
    fn nobody_tried(&self) -> bool {
        let log = self.text("log");
        !["Accepted", "Failed publickey", "userauth", "Postponed"].iter().any(|word| log.contains(word))
    }
}

/// A certificate is made by `sign`, its authority stands in known_hosts beside `more`, and the server is to be refused for `why`.
struct Case {
    what: &'static str,
    sign: &'static [&'static [&'static str]],
    known: &'static str,
    code: &'static str,
    why: &'static str,
}

const NAMED: &[&str] = &["-s", "ca", "-h", "-I", "web", "-n", "web-1", "hostkey.pub"];

/// `@CA`, `@RSA` and `@HOST` stand for public keys.
const BAD: &[Case] = &[
    Case {
        what: "a user's",
        sign: &[&["-s", "ca", "-I", "web", "-n", "web-1", "hostkey.pub"]],
        known: "@cert-authority * @CA",
        code: "host_key_certificate",
        why: "a user's",
    },
    Case {
        what: "of another authority",
        sign: &[&["-s", "other", "-h", "-I", "web", "-n", "web-1", "hostkey.pub"]],
        known: "@cert-authority * @CA",
        code: "host_key_certificate",
        why: "no @cert-authority line names",
    },
    Case {
        what: "of an authority for other hosts",
        sign: &[NAMED],
        known: "@cert-authority db-* @CA\n@cert-authority web-* @RSA",
        code: "host_key_certificate",
        why: "no @cert-authority line names",
    },
    Case {
        what: "of no authority at all",
        sign: &[NAMED],
        known: "@cert-authority db-* @CA",
        code: "host_key_unknown",
        why: "names an authority",
    },
    Case {
        what: "expired",
        sign: &[&["-s", "ca", "-h", "-I", "web", "-n", "web-1", "-V", "20200101:20200102", "hostkey.pub"]],
        known: "@cert-authority * @CA",
        code: "host_key_certificate",
        why: "expired at 2020-01-0",
    },
    Case {
        what: "not good yet",
        sign: &[&["-s", "ca", "-h", "-I", "web", "-n", "web-1", "-V", "20900101:20900102", "hostkey.pub"]],
        known: "@cert-authority * @CA",
        code: "host_key_certificate",
        why: "this machine's clock",
    },
    Case {
        what: "for another host",
        sign: &[&["-s", "ca", "-h", "-I", "web", "-n", "web-2,web-10,web-1.evil.example", "hostkey.pub"]],
        known: "@cert-authority * @CA",
        code: "host_key_certificate",
        why: "it is for [\"web-2\"",
    },
    Case {
        what: "for a pattern",
        sign: &[&["-s", "ca", "-h", "-I", "web", "-n", "web-*", "hostkey.pub"]],
        known: "@cert-authority * @CA",
        code: "host_key_certificate",
        why: "it is for [\"web-*\"",
    },
    Case {
        what: "for every host",
        sign: &[&["-s", "ca", "-h", "-I", "web", "hostkey.pub"]],
        known: "@cert-authority * @CA",
        code: "host_key_certificate",
        why: "names no host",
    },
    Case {
        what: "with a critical option",
        sign: &[&["-s", "ca", "-h", "-I", "web", "-n", "web-1", "-O", "critical:only-on-sundays=yes", "hostkey.pub"]],
        known: "@cert-authority * @CA",
        code: "host_key_certificate",
        why: "only-on-sundays",
    },
    Case {
        what: "of a revoked key",
        sign: &[NAMED],
        known: "@cert-authority * @CA\n@revoked web-1 @HOST",
        code: "host_key_revoked",
        why: "revoked",
    },
    Case {
        what: "of a revoked authority",
        sign: &[NAMED],
        known: "@cert-authority * @CA\n@revoked * @CA",
        code: "host_key_revoked",
        why: "revoked",
    },
    Case {
        what: "signed with SHA-1",
        sign: &[&["-s", "rsa", "-t", "ssh-rsa", "-h", "-I", "web", "-n", "web-1", "hostkey.pub"]],
        known: "@cert-authority * @RSA",
        code: "host_key_certificate",
        why: "SHA-1",
    },
    Case {
        what: "missing",
        sign: &[],
        known: "@cert-authority * @CA",
        code: "host_key_certificate",
        why: "no certificate",
    },
];

const CERTIFIED: &str = "HostCertificate @DIR/hostkey-cert.pub\nLogLevel DEBUG1";

fn refused(link: Result<Arc<dyn crate::ports::link::Link>, LinkError>, what: &str) -> LinkError {
    match link {
        Ok(_) => panic!("{what}: it let us in"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn certificates_that_are_not_good_are_refused_before_anybody_logs_in() {
    for case in BAD {
        let prepare = |sshd: &Sshd| {
            sshd.key("ca", &["-t", "ed25519"]);
            sshd.key("other", &["-t", "ed25519"]);
            sshd.key("rsa", &["-t", "rsa", "-b", "2048"]);
            case.sign.iter().for_each(|args| sshd.sign(args));
        };
        let extra = if case.sign.is_empty() { "LogLevel DEBUG1" } else { CERTIFIED };
        let Some(sshd) = Sshd::start_prepared(extra, prepare).await else { return };
        let known = case.known.replace("@CA", &sshd.public("ca")).replace("@RSA", &sshd.public("rsa"));
        sshd.write_known(&[known.replace("@HOST", &sshd.public("hostkey"))]);
        let learning = Arc::new(Learning::default());
        let links = sshd.links_with(learning.clone(), SshLimits::default());
        let host = sshd.host_by(HostKeys::Policy(Policy::Ca));
        let error = refused(links.connect(&realm(), &host).await, case.what);
        assert_eq!(error.cause.code, case.code, "{}: {error}", case.what);
        assert!(error.cause.message.contains(case.why), "{}: {error}", case.what);
        assert!(sshd.nobody_tried(), "{}: {}", case.what, sshd.text("log"));
        assert_eq!(learning.len(), 0, "{}", case.what);
    }
}

#[tokio::test]
async fn certificates_of_every_kind_of_key_and_authority_are_good_by_id_name_or_address() {
    let kinds: [&[&str]; 3] = [&["-t", "ed25519"], &["-t", "ecdsa", "-b", "384"], &["-t", "rsa", "-b", "2048"]];
    for (kind, principal) in kinds.into_iter().zip(["h1", "WEB-1", "127.0.0.1"]) {
        for ca in kinds {
            let prepare = |sshd: &Sshd| {
                std::fs::remove_file(sshd.dir.path().join("hostkey")).unwrap();
                sshd.key("hostkey", kind);
                sshd.key("ca", ca);
                sshd.sign(&[
                    "-s",
                    "ca",
                    "-h",
                    "-I",
                    "web",
                    "-n",
                    &format!("elsewhere,{principal}"),
                    "-V",
                    "-1m:+5m",
                    "hostkey.pub",
                ]);
            };
            let Some(sshd) = Sshd::start_prepared(CERTIFIED, prepare).await else { return };
            // Another host's key at the same address says nothing where certificates count.
            let names = ["h1", "web-*", "127.0.0.1"];
            for name in names {
                sshd.write_known(&[
                    format!("{} {}", super::known_hosts::name("127.0.0.1", sshd.port), sshd.public("id")),
                    format!("@cert-authority {name} {}", sshd.public("ca")),
                ]);
                let host = sshd.host_by(HostKeys::Policy(Policy::Ca));
                let link = sshd.links().connect(&realm(), &host).await;
                let link = link.unwrap_or_else(|e| panic!("{kind:?} {ca:?} {principal} {name}: {e}"));
                assert_eq!((exec(&*link, "echo in", b"").await.0, link.learnt()), (b"in\n".to_vec(), None));
            }
            // Where certificates are not asked for, an authority is no key.
            let error = refused(sshd.links().connect(&realm(), &sshd.host()).await, "pin");
            assert_eq!(error.cause.code, "host_key_changed", "{error}");
        }
    }
}

#[tokio::test]
async fn a_host_is_pinned_by_the_keys_in_its_record() {
    let Some(sshd) = Sshd::start("LogLevel DEBUG1").await else { return };
    sshd.key("other", &["-t", "ed25519"]);
    sshd.key("ec", &["-t", "ecdsa"]);
    let given = |keys: &[String]| sshd.host_by(HostKeys::Given(keys.to_vec()));
    let (hash, wrong) = (sshd.fingerprint("hostkey"), sshd.fingerprint("other"));
    let no_file = |mut host: Host| {
        host.ssh.known_hosts = None;
        host
    };
    for (keys, code, why) in [
        (vec![wrong.clone()], "host_key_changed", "none of those that its host_keys give"),
        (vec![sshd.public("other"), wrong.clone()], "host_key_changed", "it shows ssh-ed25519 SHA256:"),
        // A key of another type: the server has none of it.
        (vec![sshd.public("ec")], "host_key_changed", "it has only ssh-ed25519"),
        (vec!["SHA256:short".to_owned()], "host_key_unknown", "is no key"),
    ] {
        let error = refused(sshd.links().connect(&realm(), &no_file(given(&keys))).await, why);
        assert_eq!(error.cause.code, code, "{error}");
        assert!(error.cause.message.contains(why), "{error}");
    }
    // What the file revokes is revoked, whatever the record says.
    sshd.write_known(&[format!("@revoked * {}", sshd.public("hostkey"))]);
    let error = refused(sshd.links().connect(&realm(), &given(std::slice::from_ref(&hash))).await, "revoked");
    assert_eq!(error.cause.code, "host_key_revoked", "{error}");
    assert!(sshd.nobody_tried(), "{}", sshd.text("log"));
    for keys in [vec![wrong, hash.clone()], vec![sshd.public("hostkey") + " root@web-1"], vec![format!("{hash}=")]] {
        sshd.links().connect(&realm(), &no_file(given(&keys))).await.unwrap_or_else(|e| panic!("{keys:?}: {e}"));
    }
}

#[tokio::test]
async fn the_first_key_of_an_id_is_learnt_and_every_other_one_refused() {
    let Some(mut sshd) = Sshd::start("LogLevel DEBUG1").await else { return };
    let learning = Arc::new(Learning::default());
    let links = |sshd: &Sshd| sshd.links_with(learning.clone(), SshLimits::default());
    let mut host = sshd.host_by(HostKeys::Policy(Policy::Tofu));
    host.ssh.known_hosts = None;
    // It does not let us in: that may be anybody, and nothing is learnt.
    let authorized = sshd.text("authorized_keys");
    std::fs::write(sshd.dir.path().join("authorized_keys"), "").unwrap();
    assert_eq!(refused(links(&sshd).connect(&realm(), &host).await, "shut").cause.code, "auth_failed");
    assert_eq!(learning.len(), 0);
    std::fs::write(sshd.dir.path().join("authorized_keys"), authorized).unwrap();
    // A revoked key is not learnt either.
    sshd.write_known(&[format!("@revoked * {}", sshd.public("hostkey"))]);
    let mut wary = host.clone();
    wary.ssh.known_hosts = sshd.host().ssh.known_hosts;
    assert_eq!(refused(links(&sshd).connect(&realm(), &wary).await, "revoked").cause.code, "host_key_revoked");
    assert_eq!(learning.len(), 0);

    let old = sshd.fingerprint("hostkey");
    let link = links(&sshd).connect(&realm(), &host).await.unwrap();
    assert_eq!(link.learnt(), Some(format!("ssh-ed25519 {old}")));
    assert_eq!(links(&sshd).connect(&realm(), &host).await.unwrap().learnt(), None, "once");
    assert_eq!(learning.len(), 1);

    // Installed anew, or somebody else: other keys under the same id, also of another type.
    for kind in [["-t", "ed25519"], ["-t", "ecdsa"]] {
        std::fs::remove_file(sshd.dir.path().join("hostkey")).unwrap();
        sshd.key("hostkey", &kind);
        sshd.restart().await;
        let error = refused(links(&sshd).connect(&realm(), &host).await, "changed");
        assert_eq!(error.cause.code, "host_key_changed", "{error}");
        for part in [old.as_str(), " since 20", "phased hosts shop production --forget-key 'h1'"] {
            assert!(error.cause.message.contains(part), "{part}: {error}");
        }
        let shown = if kind[1] == "ed25519" { sshd.fingerprint("hostkey") } else { "it has only ecdsa".to_owned() };
        assert!(error.cause.message.contains(&shown), "{shown}: {error}");
        assert!(sshd.nobody_tried(), "{}", sshd.text("log"));
    }
    assert_eq!(learning.len(), 1);
    // Another environment knows nothing of it; another id at the same address is another machine.
    let mut elsewhere = realm();
    elsewhere.environment = "staging".parse().unwrap();
    let link = links(&sshd).connect(&elsewhere, &host).await.unwrap();
    assert!(link.learnt().is_some());
    host.id = "i-0new".parse().unwrap();
    assert!(links(&sshd).connect(&realm(), &host).await.unwrap().learnt().is_some());
    assert_eq!(learning.len(), 3);
    // What the file says of it need not be learnt.
    sshd.write_known(&[format!("h1 {}", sshd.public("hostkey"))]);
    wary.ssh.host_keys = Some(HostKeys::Policy(Policy::Tofu));
    assert_eq!(links(&sshd).connect(&realm(), &wary).await.unwrap().learnt(), None);
    assert_eq!(learning.len(), 3);
    // Whoever had its address when the file was written does not count against what it showed itself.
    sshd.key("other", &["-t", "ed25519"]);
    sshd.known("127.0.0.1", &sshd.text("other.pub"));
    wary.id = "i-0new".parse().unwrap();
    links(&sshd).connect(&realm(), &wary).await.unwrap();
    wary.id = "i-0never".parse().unwrap();
    assert_eq!(refused(links(&sshd).connect(&realm(), &wary).await, "address").cause.code, "host_key_changed");
    assert_eq!(learning.len(), 3);
}
