//! What Debian's and Fedora's own checks say of the packages.

use std::{collections::BTreeSet, process::Command};

use crate::fixture::{Output, output, package, packed, run};

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

#[test]
fn a_deb_names_what_it_needs() {
    let made = package("0.1.0");
    let needed = output(Command::new("dpkg-deb").args(["--field", made.deb.to_str().unwrap(), "Depends"])).stdout;
    // Its scripts make a user and directories also where there is no systemd.
    for package in [
        "libc6 (>= ",
        "systemd | systemd-standalone-sysusers ",
        "systemd | systemd-standalone-tmpfiles ",
        "git (>= 1:2.32)",
    ] {
        assert!(needed.contains(package), "{package} is not among {needed}");
    }
}

#[test]
fn whoever_wrote_what_the_binary_holds_is_named_with_the_licence() {
    let made = package("0.1.0");
    let unpack = "dpkg-deb --fsys-tarfile \"$1\" | tar -xO ./usr/share/doc/phased/third-party.txt.gz | gunzip";
    let told = output(Command::new("sh").args(["-c", unpack, "sh", made.deb.to_str().unwrap()])).stdout;
    for held in ["\nmlua 0.", "\naws-sdk-ec2 1.", "\nLua 5.4: MIT", "\nCopyright (C) 1994-", "Jason Evans"] {
        assert!(told.contains(held), "{held:?} is missing");
    }
    let crates = told.split("\n\n").nth(1).unwrap().lines().filter(|line| line.contains(": ")).count();
    assert!(crates > 200, "{crates}");
    assert!(!told.contains("see below") && !told.contains("GNU GENERAL PUBLIC"), "{told}");
}

#[test]
#[cfg(feature = "jemalloc")]
fn libraries_of_the_system_take_memory_from_where_the_program_does() {
    let place = tempfile::tempdir().unwrap();
    let binary = packed(&package("0.1.0").deb, place.path());
    let told = run(Command::new("nm").args(["-D", "--defined-only"]).arg(binary));
    // One name less, and what one of the two gives the other would free.
    for name in [
        "malloc",
        "calloc",
        "realloc",
        "free",
        "aligned_alloc",
        "memalign",
        "posix_memalign",
        "pvalloc",
        "valloc",
        "malloc_usable_size",
    ] {
        assert!(told.lines().any(|line| line.ends_with(&format!(" T {name}"))), "{name} is not exported: {told}");
    }
}

#[test]
fn both_packages_bring_the_same_files_where_each_system_looks_for_them() {
    let made = package("0.1.0");
    let list = |command: &mut Command| -> BTreeSet<String> {
        let files = run(command);
        files.lines().map(|line| line.trim_start_matches('.').to_owned()).filter(|line| !line.ends_with('/')).collect()
    };
    let deb = list(Command::new("sh").args(["-c", "dpkg-deb --fsys-tarfile \"$1\" | tar -t", "sh"]).arg(&made.deb));
    let rpm = list(Command::new("rpm").arg("-qlp").arg(&made.rpm));
    for file in [
        "/usr/bin/phased",
        "/usr/share/man/man5/phased.toml.5.gz",
        "/usr/share/man/man5/phased-lua.5.gz",
        "/usr/share/man/man8/phased.8.gz",
        "/usr/share/man/man8/phased-start.8.gz",
        "/usr/share/bash-completion/completions/phased",
        "/usr/share/fish/vendor_completions.d/phased.fish",
        "/usr/share/phased/init/phased",
        "/usr/share/phased/lua/phased.d.lua",
        "/usr/share/phased/examples/shop.lua",
        "/usr/share/phased/plugins/alerts/slack.lua",
        "/usr/share/doc/phased/README.md",
        "/usr/share/doc/phased/changelog.gz",
        "/usr/share/doc/phased/docs/openapi.json",
        "/usr/share/doc/phased/third-party.txt.gz",
    ] {
        assert!(deb.contains(file), "{file} is not among {deb:?}");
    }
    let only = |of: &BTreeSet<String>, not_of: &BTreeSet<String>| of.difference(not_of).cloned().collect::<Vec<_>>();
    assert_eq!(
        only(&deb, &rpm),
        [
            "/usr/share/doc/phased/changelog.Debian.gz",
            "/usr/share/doc/phased/copyright",
            "/usr/share/lintian/overrides/phased",
            "/usr/share/zsh/vendor-completions/_phased",
        ]
    );
    assert_eq!(only(&rpm, &deb), ["/usr/share/doc/phased/LICENSE", "/usr/share/zsh/site-functions/_phased"]);
}

#[test]
fn what_somebody_has_written_outlives_a_version_that_ships_another_text() {
    let made = package("0.1.0");
    let config = "/etc/phased/phased.toml";
    let conffiles = run(Command::new("dpkg-deb").args(["--info", made.deb.to_str().unwrap(), "conffiles"]));
    assert_eq!(conffiles.lines().filter(|line| *line == config).count(), 1, "{conffiles}");
    let flags = run(Command::new("rpm").args(["-qp", "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]"]).arg(&made.rpm));
    // c = configuration, n = not replaced.
    assert!(flags.lines().any(|line| line == format!("{config} cn")), "{flags}");
}
