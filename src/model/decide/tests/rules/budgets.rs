//! The table of odd cases in `docs/rollouts.md`, row by row, with the numbers that stand there.

use super::*;

/// What a row says: the case, and what happens here.
fn rows() -> Vec<[String; 2]> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/rollouts.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, table) = text.split_once("## Budgets where others surprise").unwrap();
    let lines = table.lines().filter(|line| line.starts_with('|')).skip(2);
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            [cells[1].to_owned(), cells[3].to_owned()]
        })
        .collect()
}

fn numbers(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

/// How a rollout ends in which the deploy of the first hosts fails by this code, and what became of those.
fn ends(rollout: Rollout, hosts: u32, failing: u32, code: &str) -> (RunState, String, Vec<HostState>) {
    let rollout = Rollout { on_failure: OnFailure::Rollback, ..rollout };
    let mut tale = Tale::planned(&rollout, Purpose::Deploy, fleet(hosts.into(), &[]));
    let fails = |key: &str| (0..failing).any(|n| key.starts_with(&format!("e0#1/h{n}/")));
    while tale.run.end.is_none() {
        let key = tale.begins().into_iter().next();
        let Some(key) = key else { break };
        tale.opens(&key);
        tale.closes(&key, fails(&key.to_string()).then(|| Cause::new(code, "it did not work")));
    }
    let (state, why) = tale.end().unwrap();
    let of = |n: u32| tale.run.deployments[0].host(&host(n.into()).id).unwrap().state(true);
    (state, why.to_owned(), (0..failing).map(of).collect())
}

fn failures(max_failures: Budget) -> Rollout {
    Rollout { max_failures, ..Rollout::default() }
}

/// As many failures as are said to be allowed are, and one more stops it.
fn stops_above(percent: u32, hosts: u32, allowed: u32) {
    let budget = Budget::Percent(percent);
    assert_eq!(budget.of(hosts as usize), allowed as usize);
    assert_eq!(ends(failures(budget), hosts, allowed, "exit").0, RunState::Succeeded);
    let (state, why, _) = ends(failures(budget), hosts, allowed + 1, "exit");
    assert_eq!((state, why.as_str()), (RunState::RolledBack, "max_failures"));
}

#[test]
fn the_odd_cases_of_budgets_are_as_the_table_says() {
    let rows = rows();
    assert_eq!(rows.len(), 7, "each row has its case below: {rows:#?}");
    for (n, [case, here]) in rows.iter().enumerate() {
        match (n, numbers(case).as_slice(), numbers(here).as_slice()) {
            (0, [hosts, percent, ..], [same, allowed]) => {
                assert_eq!(percent, same);
                stops_above(*percent, *hosts, *allowed);
            }
            (1, [hosts, percent], [same, of, allowed]) => {
                assert_eq!((percent, hosts), (same, of));
                stops_above(*percent, *hosts, *allowed);
                // Of the whole environment, however small its waves.
                let waves = Waves::Each(Budget::Count(1));
                let rollout = Rollout { waves, ..failures(Budget::Percent(50)) };
                assert_eq!(ends(rollout, 4, 2, "exit").0, RunState::Succeeded);
            }
            (2, [percent, hosts], [allowed]) => stops_above(*percent, *hosts, *allowed),
            (3, [percent, hosts], [least]) => {
                let rollout = Rollout { waves: Waves::Each(Budget::Percent(*percent)), ..Rollout::default() };
                let (_, phases) = plan::phases(&rollout, fleet(u64::from(*hosts), &[])).unwrap();
                assert_eq!(phases.waves, vec![*least; *hosts as usize]);
            }
            (4, [], []) => {
                let word = "max_unreachable";
                assert!(here.contains(word), "{here}");
                let one = Rollout { max_unreachable: Budget::Count(1), ..Rollout::default() };
                let (state, _, hosts) = ends(one.clone(), 4, 1, "unreachable");
                assert_eq!((state, hosts), (RunState::Succeeded, vec![HostState::Unreachable]));
                // Neither budget stands in for the other.
                let many = failures(Budget::Count(4));
                assert_eq!(ends(many, 4, 1, "unreachable").1, word);
                assert_eq!(ends(one, 4, 1, "exit").1, "max_failures");
            }
            (5, [], []) => {
                let (state, why, _) = ends(failures(Budget::Percent(100)), 3, 3, "exit");
                assert_ne!(state, RunState::Succeeded);
                assert!(here.contains(&format!("`{why}`")), "{why}: {here}");
            }
            (6, [], []) => {
                let (state, _, hosts) = ends(failures(Budget::Count(1)), 3, 1, "exit");
                assert_eq!((state, hosts), (RunState::Succeeded, vec![HostState::Quarantined]));
                assert!(here.contains("quarantined"), "{here}");
            }
            other => panic!("row {other:?} has no case here: {case} | {here}"),
        }
    }
}
