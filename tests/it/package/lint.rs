//! What Debian's and Fedora's own checks say of the packages.

use std::process::Command;

use crate::fixture::{Output, output, package};

fn tool(name: &str, args: &[&str]) -> Output {
    let found = Command::new("sh").args(["-c", "command -v \"$1\"", "sh", name]).output();
    assert!(found.is_ok_and(|o| o.status.success()), "{name} is missing: apt-get install {name}");
    output(Command::new(name).args(args))
}

#[test]
fn lintian_and_rpmlint_have_nothing_to_say() {
    let made = package("0.1.0");
    let said = tool("lintian", &["--allow-root", "--fail-on", "error,warning", made.deb.to_str().unwrap()]);
    assert_eq!((said.code, said.stdout.as_str()), (0, ""), "{}{}", said.stdout, said.stderr);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/rpm/rpmlint.toml");
    let said = tool("rpmlint", &["--config", config, made.rpm.to_str().unwrap()]);
    assert!(said.code == 0 && said.stdout.contains("0 errors, 0 warnings"), "{}{}", said.stdout, said.stderr);
}
