//! Every language's project passes `phased check`, and what is said on the command line is read as it is meant.

use super::{
    detect::{Files, detect, tests as cases},
    *,
};

#[test]
fn the_project_of_every_language_passes_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = dir.path().join("secrets");
    let mut files = super::files::Files::new();
    for name in ["deploy_key", "shop_webhook", "shop_git_key", "shop_git_token"] {
        files.secret(&secrets, name, || Ok("at least 8 bytes".to_owned())).unwrap();
    }
    let config = format!("plugins = [\"{0}/plugins\"]\ndata_dir = \"{0}/data\"\n", dir.path().display());
    let config = Config::parse(&config, Path::new("phased.toml")).unwrap();
    let reader: Arc<dyn Secrets> = Arc::new(FileSecrets::new(vec![secrets]));
    let file = dir.path().join("plugins/projects/shop.lua");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let base = project::tests::draft();
    let with = |change: &dyn Fn(&mut Draft)| {
        let mut draft = base.clone();
        change(&mut draft);
        draft
    };
    let mut drafts: Vec<Draft> = cases::CASES
        .iter()
        .map(|(case, ..)| {
            let (names, texts) = cases::files(case);
            with(&|draft| draft.found = detect(&Files { names: &names, texts: &texts }))
        })
        .collect();
    let address = |host: &str, port| Address { host: host.to_owned(), port };
    drafts.extend([
        // Nothing was found; no hosts; another port; no unit; a private repository; what a shell and Lua would take for something else.
        with(&|_| {}),
        with(&|draft| draft.hosts.clear()),
        with(&|draft| {
            draft.hosts = vec![address("127.0.0.1", Some(2222)), address("::1", Some(2223)), address("web2", None)]
        }),
        with(&|draft| (draft.service, draft.health) = (None, Some(":8080/healthz".to_owned()))),
        with(&|draft| draft.service = None),
        with(&|draft| draft.token = Some("shop_git_token".to_owned())),
        with(&|draft| {
            draft.git = "git@github.com:acme/shop.git".to_owned();
            draft.git_key = Some("shop_git_key".to_owned());
        }),
        with(&|draft| draft.dir = "/srv/it's a \"place\"".to_owned()),
    ]);
    for draft in drafts {
        let text = project::lua(&draft);
        std::fs::write(&file, &text).unwrap();
        if let Err(found) = projects(&config, &reader).load() {
            panic!("{}\n{text}", diagnostics::render(&found, false));
        }
    }
}

#[test]
fn hosts_are_read_as_people_write_them() {
    for (text, user, address, port) in [
        ("web1", None, "web1", None),
        ("deploy@10.0.0.3:2222", Some("deploy"), "10.0.0.3", Some(2222)),
        ("web1:22", None, "web1", None),
        ("[::1]:2222", None, "::1", Some(2222)),
        ("root@fe80::1", Some("root"), "fe80::1", None),
    ] {
        let (found, place) = host(text).unwrap();
        assert_eq!((found.as_deref(), place.host.as_str(), place.port), (user, address, port), "{text}");
    }
    for text in ["", "@web1", "web1:0", "web1:x", "we b1", "-oProxyCommand=x", "[::1]22", "a b@web1", "web1:99999"] {
        assert!(host(text).is_err(), "{text}");
    }
}

#[test]
fn the_command_for_a_host_goes_to_its_port() {
    let mut draft = project::tests::draft();
    for (address, port, command) in [
        ("web1", None, "ssh root@web1 sh <"),
        ("web1", Some(2222), "ssh -p 2222 root@web1 sh <"),
        ("::1", Some(2223), "ssh -p 2223 root@::1 sh <"),
        ("fe80::1", None, "ssh root@fe80::1 sh <"),
    ] {
        draft.hosts = vec![Address { host: address.to_owned(), port }];
        let missing = vec![Cause::new("auth_failed", "no")];
        let state = State { missing, ..State::of(&draft.host(&draft.hosts[0]).unwrap()) };
        let mut report = Report { hosts: vec![state], ..Report::default() };
        report.decide_next(&draft, Path::new("shop.host.sh"), false);
        assert!(report.next.starts_with(command), "{}", report.next);
        report.differs = vec!["shop.lua".to_owned()];
        report.decide_next(&draft, Path::new("shop.host.sh"), false);
        assert!(report.next.starts_with("shop.lua is there already"), "{}", report.next);
    }
}

#[test]
fn a_webhooks_url_is_what_the_forge_can_ask() {
    let tls = "tls = { cert = \"/c.pem\", key = \"/k.pem\" }\n";
    let proxy = "trusted_proxies = [\"10.0.0.1\"]\n";
    let (everywhere, name) = ("listen = \"0.0.0.0:7427\"\n", "host_names = [\"ci.example.com\"]\n");
    for (api, url, note) in [
        (vec![], Some("http://127.0.0.1:7427"), "put a proxy with TLS before it"),
        (vec![name], Some("https://ci.example.com"), ""),
        (vec![everywhere, proxy, name], Some("https://ci.example.com"), ""),
        (vec![everywhere, proxy, name, tls], Some("https://ci.example.com"), ""),
        (vec![everywhere, name, tls], Some("https://ci.example.com:7427"), ""),
        (vec![everywhere, tls], Some("https://NAME:7427"), "what the certificate calls this machine"),
        (vec!["listen = \"[::1]:7427\"\n", tls], Some("https://[::1]:7427"), "the forge has to reach it"),
        (vec!["listen = \"10.0.0.2:7427\"\n", proxy, tls], Some("https://10.0.0.2:7427"), "the forge has to reach it"),
        (vec!["listen = \"none\"\n"], None, ""),
    ] {
        let config = Config::parse(&format!("[api]\n{}", api.concat()), Path::new("phased.toml")).unwrap();
        let webhook = Webhook::new(&config, &"shop".parse().unwrap(), "secret", "https://github.com/acme/shop.git");
        assert_eq!(webhook.url, url.map(|url| format!("{url}/hooks/github/shop")), "{api:?}");
        assert!(
            webhook.note.unwrap_or_default().contains(note) && webhook.note.is_some() != note.is_empty(),
            "{webhook:?}"
        );
    }
}
