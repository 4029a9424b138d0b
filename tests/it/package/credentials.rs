//! Secrets that systemd gives to the service, as docs/service.md shows it.

use super::site::Site;

/// What the how-to writes: the key that the daemon logs in with is nowhere else.
const SHOWN: &str = "LoadCredential=deploy_key:/etc/ssl/private/deploy_key";
const TOKEN: &str = "a token that systemd keeps";

const PROJECT: &str = r#"
return phased.project {
  source = { git = "http://127.0.0.3:8000/shop.git", branch = "main" },
  test = { { "unit", run = function(run)
    run:sh { [[
      echo "it is <$TOKEN>"
      printf %s "$TOKEN" | sha256sum
    ]], env = { TOKEN = phased.secret "token" } }
  end } },
  environments = { { "production", hosts = { "127.0.0.2" },
    ssh = { user = "deploy", key = phased.secret "deploy_key", known_hosts = "/etc/phased/known_hosts" },
    rollout = { canary = 0, bake_time = "0s" }, deploy = function(host) host:sh "echo let in" end, health = "none" } },
  notify = require "alerts.log" {},
}
"#;

#[test]
fn a_credential_of_the_unit_reaches_a_run_and_is_redacted_in_its_output() {
    assert!(include_str!("../../../docs/service.md").contains(SHOWN));
    let site = Site::new();
    site.install("0.1.0");
    site.projects();
    let machine = &site.integration;
    machine.ok(&format!(
        r#"
        rm /etc/phased/plugins/projects/*.lua
        install -d -m 700 /etc/ssl/private
        mv /etc/phased/secrets/deploy_key /etc/ssl/private/deploy_key
        chown root: /etc/ssl/private/deploy_key
        install -d /etc/systemd/system/phased.service.d
        printf '%s\n' '[Service]' '{SHOWN}' 'SetCredential=token:{TOKEN}' >/etc/systemd/system/phased.service.d/credentials.conf
        systemctl daemon-reload
        systemctl restart phased.service
        "#
    ));
    std::fs::write(machine.path("/etc/phased/plugins/projects/kept.lua"), PROJECT).unwrap();
    machine.ok("CREDENTIALS_DIRECTORY=/run/credentials/phased.service phased check && phased reload");
    let run = site.first("kept").wait().is("succeeded");
    let sum = machine.ok(&format!("printf %s '{TOKEN}' | sha256sum"));
    let log = run.log();
    assert!(log.contains(sum.trim()), "the token did not get there:\n{log}");
    assert!(log.contains("it is <") && !log.contains(TOKEN), "{log}");
    assert!(log.contains("let in"), "{log}");
    // Nor is it anywhere else that people look.
    let shown = machine.ok("phased runs --json; phased status --json; journalctl --no-pager -u phased.service");
    assert!(!shown.contains(TOKEN), "{shown}");
}
