//! A real nginx and a real Caddy in front, with the configurations that docs/how-to/proxy.md shows.

use std::{
    fs::File,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::token;
use crate::fixture::{Daemon, Output, Project, World, eventually, free_port, output, pem, shown};

/// The configuration that the how-to shows first under this heading, with what is another thing here.
fn configuration(heading: &str, here: &[(&str, String)]) -> String {
    let shown = shown("docs/how-to/proxy.md", heading).swap_remove(0);
    here.iter().fold(shown, |shown, (from, to)| {
        assert!(shown.contains(from), "the how-to does not have {from:?} any more");
        shown.replace(from, to)
    })
}

/// A proxy in the foreground; dies with its owner.
struct Proxy {
    child: Child,
    port: u16,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // What it has begun ends with it when it is asked, and not when it is killed.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _reaped = self.child.wait();
    }
}

impl Proxy {
    fn nginx(world: &World, daemon: &Daemon) -> Proxy {
        let (dir, port) = (world.path("nginx"), free_port());
        std::fs::create_dir(&dir).unwrap();
        let site = configuration(
            "nginx",
            &[
                ("127.0.0.1:7427", daemon.addr.to_string()),
                ("listen 443 ssl", format!("listen 127.0.0.1:{port} ssl")),
                ("/etc/ssl/deploy.example.com/fullchain.pem", pem("signed.pem").display().to_string()),
                ("/etc/ssl/deploy.example.com/privkey.pem", pem("signed.key.pem").display().to_string()),
                ("deploy.example.com", "phased.test".to_owned()),
            ],
        );
        let here = dir.display();
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {here}/{kind};\n"))
            .collect();
        let config = format!(
            "daemon off;\nmaster_process off;\nuser root;\npid {here}/pid;\nerror_log {here}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n{temp}{site}}}\n"
        );
        std::fs::write(dir.join("nginx.conf"), config).unwrap();
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-c").arg(dir.join("nginx.conf")).arg("-p").arg(&dir).arg("-e").arg(dir.join("error.log"));
        Proxy::start(&mut command, &dir, port, "nginx-light")
    }

    /// It has a certificate here, asks nobody for one, and listens nowhere else.
    fn caddy(world: &World, daemon: &Daemon) -> Proxy {
        let (dir, port) = (world.path("caddy"), free_port());
        std::fs::create_dir(&dir).unwrap();
        let (cert, key) = (pem("signed.pem"), pem("signed.key.pem"));
        let site = configuration(
            "Caddy",
            &[
                ("127.0.0.1:7427", daemon.addr.to_string()),
                ("deploy.example.com {\n", format!("phased.test {{\n    tls {} {}\n", cert.display(), key.display())),
            ],
        );
        let options = format!(
            "{{\n    admin off\n    auto_https disable_redirects\n    default_bind 127.0.0.1\n    https_port {port}\n}}\n"
        );
        std::fs::write(dir.join("Caddyfile"), options + &site).unwrap();
        let mut command = Command::new("caddy");
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(dir.join("Caddyfile"));
        command.env("HOME", &dir).env("XDG_CONFIG_HOME", &dir).env("XDG_DATA_HOME", &dir);
        Proxy::start(&mut command, &dir, port, "caddy")
    }

    fn start(command: &mut Command, dir: &Path, port: u16, package: &str) -> Proxy {
        let said = dir.join("said");
        let child = command.stdin(Stdio::null()).stderr(File::create(&said).unwrap()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}: apt-get install {package}"));
        eventually("the proxy listens", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the proxy ended ({status}): {}", std::fs::read_to_string(&said).unwrap_or_default());
            }
            std::net::TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).ok()
        });
        Proxy { child, port }
    }

    /// `curl ARGS https://phased.test/PATH` from this loopback address.
    fn curl(&self, from: &str, path: &str, args: &[&str]) -> Output {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "90", "-w", "\n%{http_code}", "--interface", from, "--cacert"])
            .arg(pem("ca.pem"));
        curl.args(["--resolve", &format!("phased.test:{}:127.0.0.1", self.port)]).args(args);
        output(curl.arg(format!("https://phased.test:{}{path}", self.port)))
    }
}

#[test]
fn behind_nginx_every_client_is_itself_and_nobody_can_be_another() {
    every_client_is_itself(Proxy::nginx, &["413"]);
}

#[test]
fn behind_caddy_every_client_is_itself_and_nobody_can_be_another() {
    // Caddy 2.6 cuts the connection of what is too large, or says that the daemon did.
    every_client_is_itself(Proxy::caddy, &["413", "502", "000"]);
}

fn every_client_is_itself(before: fn(&World, &Daemon) -> Proxy, too_large: &[&str]) {
    let world = World::new();
    world.project(&Project::new("shop").hosts(&["h1"]).webhook().stage("unit", r#"run:sh "echo it is tested""#));
    std::fs::write(world.path("api.toml"), "host_names = [\"phased.test\"]\ntrusted_proxies = [\"127.0.0.1/32\"]\n")
        .unwrap();
    std::fs::write(world.path("limits.toml"), "refusal_rate = \"3/h\"\n").unwrap();
    let daemon = world.start();
    let token = token(&daemon, "admin", None);
    let proxy = before(&world, &daemon);
    let bearer = format!("Authorization: Bearer {token}");

    // It works: answers, a body, a stream.
    let said = proxy.curl("127.0.0.2", "/v1/status", &["-H", &bearer]);
    assert!(said.code == 0 && said.stdout.ends_with("\n200") && said.stdout.contains("shop"), "{said:?}");
    let commit = world.repo.push("through a proxy");
    let said = proxy.curl("127.0.0.2", "/v1/projects/shop/start", &["-H", &bearer, "-d", "reason=proxied"]);
    assert!(said.stdout.ends_with("\n202"), "{said:?}");
    let run = daemon.nth_run(1);
    let log = proxy.curl("127.0.0.2", &format!("/v1/runs/{}/log?follow", run.id), &["-H", &bearer, "-N"]);
    assert!(log.code == 0 && log.stdout.contains("it is tested"), "{log:?}");
    run.wait().is("succeeded");
    assert!(world.hosts_have(&["h1"], &commit));
    // The largest webhook gets to the daemon, which misses its signature; a larger one does not.
    let large = world.path("large");
    let deliver = |bytes: usize| {
        std::fs::write(&large, vec![b'x'; bytes]).unwrap();
        let said = proxy.curl("127.0.0.2", "/hooks/github/shop", &["--data-binary", &format!("@{}", large.display())]);
        said.stdout.rsplit('\n').next().unwrap().to_owned()
    };
    assert_eq!(deliver(25 << 20), "401");
    let refused = deliver(26 << 20);
    assert!(too_large.contains(&refused.as_str()), "{refused}");

    // The audit has the client's address and not the proxy's, whatever the client says of itself.
    let audit = |what: &str| daemon.said().lines().filter(|l| l.contains(what)).map(str::to_owned).collect::<Vec<_>>();
    let started = audit("/v1/projects/shop/start");
    assert!(started.iter().any(|l| l.contains("\"client\":\"127.0.0.2\"")), "{started:?}");
    let lie = ["-H", "X-Forwarded-For: 127.0.0.99", "-H", "Forwarded: for=127.0.0.99", "-H", "X-Real-IP: 127.0.0.99"];
    let refused = |from: &str| {
        let said = proxy.curl(from, "/v1/status", &lie);
        said.stdout.rsplit('\n').next().unwrap().to_owned()
    };
    let answers: Vec<String> = (0..5).map(|_| refused("127.0.0.3")).collect();
    assert_eq!(answers, ["401", "401", "401", "429", "429"]);
    assert_eq!(refused("127.0.0.4"), "401", "another client has a rate of its own");
    assert!(audit("a request was refused").iter().any(|l| l.contains("127.0.0.3")));
    assert!(!daemon.said().contains("127.0.0.99"));
    assert!(!daemon.said().contains("does not say for whom it asks"));

    // Who goes round the proxy is believed nothing.
    let direct = daemon.tcp().with("x-forwarded-for", "127.0.0.5");
    assert_eq!(direct.get("/v1/status").status, 401);
    assert!(daemon.said().contains("127.0.0.5"), "it came from the proxy's own address");
    let other = output(
        Command::new("curl")
            .args(["-sS", "--interface", "127.0.0.6", "-H", "X-Forwarded-For: 127.0.0.98"])
            .arg(format!("http://{}/v1/status", daemon.addr)),
    );
    assert!(other.stdout.contains("token_missing"), "{other:?}");
    assert!(daemon.said().contains("127.0.0.6") && !daemon.said().contains("127.0.0.98"));
}
