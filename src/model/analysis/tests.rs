use super::*;

fn s(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn above(level: f64) -> Option<Condition> {
    Some(Condition { above: Some(Level(level)), ..Condition::default() })
}

fn below(level: f64) -> Option<Condition> {
    Some(Condition { below: Some(Level(level)), ..Condition::default() })
}

/// One word a measurement, 30 s apart: a number, `-` for no data, `!` for an error; `5/4` is 5 against a baseline of 4.
fn fold(analysis: &Analysis, words: &str) -> Series {
    let mut series = Series::new("error rate", analysis);
    let found = |word: &str| match word {
        "-" => Found::NoData(None),
        "!" => Found::Error(Cause::new("http_connect", "connection refused")),
        number => Found::Value(number.parse().unwrap(), None),
    };
    for (n, word) in words.split_whitespace().enumerate() {
        let (mine, other) = word.split_once('/').map_or((word, None), |(mine, other)| (mine, Some(other)));
        let at = s(30 * (n as u64 + 1));
        series.see(&Measurement { at, found: found(mine), baseline: other.map(found) });
    }
    series
}

fn assess(analysis: &Analysis, words: &str, over: bool) -> (Verdict, String) {
    let Assessment { verdict, message } = fold(analysis, words).assess(over);
    (verdict, message)
}

#[test]
fn conditions_make_phases_as_argo_documents_them() {
    let of = |success, failure| Analysis { success, failure, ..Analysis::default() };
    // Success alone: everything else is a failure. Failure alone: everything else is a success.
    assert_eq!(of(below(1.0), None).phase(0.5), Phase::Successful);
    assert_eq!(of(below(1.0), None).phase(1.0), Phase::Failed);
    assert_eq!(of(None, above(1.0)).phase(1.0), Phase::Successful);
    assert_eq!(of(None, above(1.0)).phase(1.5), Phase::Failed);
    // Both: in between is inconclusive, and failure wins where both hold.
    assert_eq!(of(below(1.0), above(5.0)).phase(3.0), Phase::Inconclusive);
    assert_eq!(of(below(9.0), above(5.0)).phase(7.0), Phase::Failed);
    assert_eq!(of(below(1.0), above(5.0)).phase(f64::NAN), Phase::Nothing);
    let within = Condition { between: Some((Level(1.0), Level(2.0))), ..Condition::default() };
    assert_eq!([0.9, 1.0, 2.0, 2.1].map(|value| within.holds(value)), [false, true, true, false]);
    assert_eq!(within.words(), "from 1 to 2");
}

/// Argo's documented cases: limits, count, errors, what runs on without an end.
#[test]
fn limits_and_counts_are_argos() {
    use Verdict::{Fail, Inconclusive, Open, Pass};
    let with = |change: fn(&mut Analysis)| {
        let mut analysis = Analysis { failure: above(5.0), success: below(3.0), ..Analysis::default() };
        change(&mut analysis);
        analysis
    };
    let plain = with(|_| {});
    let three = with(|a| a.failure_limit = 3);
    let five = with(|a| a.count = Some(5));
    let unsure = with(|a| a.inconclusive_limit = 1);
    let strict = with(|a| a.consecutive_error_limit = 0);
    let in_a_row = with(|a| (a.consecutive_success_limit, a.failure_limit) = (Some(3), 9));
    let both = with(|a| (a.consecutive_success_limit, a.failure_limit, a.count) = (Some(3), 9, Some(5)));
    for (analysis, words, over, verdict) in [
        // No limit given is 0: the first failed measurement fails it.
        (&plain, "1 9", false, Fail),
        (&three, "9 9 9", false, Open),
        (&three, "9 1 9 1 9 1 9", false, Fail),
        // Without count it goes on until somebody ends it, and then it is as good as it was.
        (&plain, "1 1 1 1 1 1 1 1 1 1", false, Open),
        (&plain, "1 1 1", true, Pass),
        (&three, "9 9 9", true, Pass),
        // With count it ends by itself; errors and missing data do not count.
        (&five, "1 1 1 1", false, Open),
        (&five, "1 1 1 1 1", false, Pass),
        (&five, "1 ! 1 - 1 1", false, Open),
        (&five, "1 ! 1 - 1 1 1", false, Pass),
        // Neither good nor bad.
        (&plain, "1 4", false, Inconclusive),
        (&unsure, "1 4", false, Open),
        (&unsure, "4 1 4 1", false, Inconclusive),
        (&unsure, "4 1 4 9", false, Fail),
        // More than four errors in a row; one that is none begins anew.
        (&plain, "! ! ! !", false, Open),
        (&plain, "! ! ! ! !", false, Inconclusive),
        (&plain, "! ! ! ! 1 ! ! ! !", false, Open),
        (&plain, "- ! - ! -", false, Inconclusive),
        (&plain, "- ! - ! - 1", false, Open),
        (&strict, "1 !", false, Inconclusive),
        // Good ones in a row.
        (&in_a_row, "1 1", false, Open),
        (&in_a_row, "9 1 1 9 1 1 1", false, Pass),
        (&in_a_row, "1 1 ! 1", false, Open),
        (&in_a_row, "1 1", true, Inconclusive),
        (&both, "1 1 9 1 1", false, Inconclusive),
        (&both, "9 9 1 1 1", false, Pass),
    ] {
        let (found, message) = assess(analysis, words, over);
        assert_eq!(found, verdict, "{words}: {message}");
        assert!(message.starts_with("error rate "), "{message}");
    }
}

#[test]
fn no_data_is_inconclusive_and_never_a_pass() {
    let analysis = Analysis { failure: above(1.0), min_samples: 3, ..Analysis::default() };
    for words in ["", "-", "!", "- - - - - - - -", "0 0", "0 0 0 -", "0 0 0 !", "nan nan nan nan", "inf"] {
        let (verdict, message) = assess(&analysis, words, true);
        assert_eq!(verdict, Verdict::Inconclusive, "{words}: {message}");
    }
    assert_eq!(assess(&analysis, "0 - 0 - 0", true).0, Verdict::Pass);
    assert_eq!(assess(&analysis, "", true).1, "error rate was never measured");
    assert_eq!(assess(&analysis, "0 - 0", true).1, "error rate has 2 measurements, 1 without data; it takes 3 to tell");
    assert_eq!(
        assess(&analysis, "0 0 0 !", true).1,
        "error rate had no data in the last measurement (connection refused)"
    );
}

#[test]
fn a_bad_value_has_to_last() {
    let analysis = Analysis { failure: above(0.01), lasting_ms: 120_000, ..Analysis::default() };
    // 30 s apart: the fifth bad one in a row is two minutes after the first.
    for (words, verdict) in [
        ("0.5", Verdict::Open),
        ("0.5 0.5 0.5 0.5", Verdict::Open),
        ("0.5 0.5 0.5 0.5 0.031", Verdict::Fail),
        ("0.5 0.5 0.5 0 0.5 0.5", Verdict::Open),
        // A gap neither ends the bad time nor makes it shorter.
        ("0.5 - ! - 0.5", Verdict::Fail),
    ] {
        assert_eq!(assess(&analysis, words, false).0, verdict, "{words}");
    }
    let (verdict, message) = assess(&analysis, "0 0 0.5", true);
    assert_eq!(verdict, Verdict::Inconclusive);
    assert_eq!(message, "error rate 0.5 is bad, but not for 2m yet, limit 0.01");
    assert_eq!(assess(&analysis, "0 0.5 0", true).0, Verdict::Pass);
}

#[test]
fn verdicts_have_their_numbers_in_words() {
    let rate = Analysis { success: below(0.01), failure_limit: 2, ..Analysis::default() };
    assert_eq!(assess(&rate, "0.02 0 0.031 0.012 0", false).1, "error rate 0.031 in 3 of 5 measurements, limit 0.01");
    assert_eq!(assess(&rate, "0 0.004", true).1, "error rate 0.004 and never bad in 2 measurements, limit 0.01");
    assert_eq!(assess(&rate, "0.2 0", true).1, "error rate 0 and bad in 1 of 2 measurements only, limit 0.01");
    assert_eq!(assess(&rate, "0.2 0", false).1, "error rate 0 now, bad in 1 of 2 measurements, limit 0.01");
    let both = Analysis { failure: above(5.0), ..rate.clone() };
    assert_eq!(
        assess(&both, "3", false).1,
        "error rate 3 in 1 of 1 measurement was neither good (below 0.01) nor bad (above 5)"
    );
    // The one furthest from good is named, whichever way that is.
    let least = Analysis { success: above(10.0), failure_limit: 1, ..Analysis::default() };
    assert_eq!(assess(&least, "2 5", false).1, "error rate 2 in 2 of 2 measurements, limit 10");
    let mut said = Series::new("latency", &Analysis { failure: above(1.0), ..Analysis::default() });
    said.see(&Measurement { at: s(1), found: Found::Value(2.5, Some("p99 of web1".to_owned())), baseline: None });
    assert_eq!(said.assess(false).message, "latency 2.5 in 1 of 1 measurement, limit 1 (p99 of web1)");
    for (value, text) in [
        (0.0, "0"),
        (-0.0, "0"),
        (100.0, "100"),
        (-3.0, "-3"),
        (0.031_26, "0.03126"),
        (12.345_6, "12.35"),
        (1234.56, "1235"),
        (1e-7, "1.000e-7"),
        (0.1 + 0.2, "0.3"),
    ] {
        assert_eq!(number(value), text);
    }
}

#[test]
fn the_new_release_is_held_against_as_many_old_hosts() {
    let higher = Analysis { compare: Some(Compare::default()), ..Analysis::default() };
    let (verdict, message) = assess(&higher, "9/1 8/2 9/1 7/3 9/2", true);
    assert_eq!(verdict, Verdict::Fail);
    assert_eq!(
        message,
        "error rate 9 against 2 of the baseline, higher in 100 of 100 pairs, 5 measurements a side; chance alone: 0.004, limit 0.02"
    );
    // It is judged once, in the end.
    assert_eq!(assess(&higher, "9/1 8/2 9/1 7/3 9/2", false).0, Verdict::Open);
    for words in ["1/1 2/2 3/3 4/4 5/5", "1/9 2/8 1/9 3/7", "5/1 1/5 5/1 1/5 3/3"] {
        assert_eq!(assess(&higher, words, true).0, Verdict::Pass, "{words}");
    }
    let lower = Compare { worse: Worse::Lower, ..Compare::default() };
    let lower = Analysis { compare: Some(lower), ..Analysis::default() };
    assert_eq!(assess(&lower, "1/9 2/8 1/9 3/7", true).0, Verdict::Fail);
    // What is tolerated is no difference: 5 % more every time.
    let tolerant = Compare { tolerance: 10, ..Compare::default() };
    let tolerant = Analysis { compare: Some(tolerant), ..Analysis::default() };
    let words = "105/100 106/101 104/99 105/100 107/102";
    assert_eq!((assess(&higher, words, true).0, assess(&tolerant, words, true).0), (Verdict::Fail, Verdict::Pass));
    // Too few to tell anything, and a baseline without data.
    let (verdict, message) = assess(&higher, "9/1 9/1 9/1", true);
    assert_eq!(verdict, Verdict::Inconclusive);
    assert!(message.ends_with("3 measurements a side; it takes 4 a side to tell a difference"), "{message}");
    let (verdict, message) = assess(&higher, "9/1 9/1 9/1 9/1 9/-", true);
    assert_eq!(verdict, Verdict::Inconclusive);
    assert_eq!(message, "error rate had no data in the last measurement (the baseline has no data)");
    // A limit of its own holds beside it.
    let limited = Analysis { failure: above(8.5), ..higher };
    assert_eq!(assess(&limited, "9/9", false).0, Verdict::Fail);
}

#[test]
fn the_plan_says_what_it_could_see() {
    let analysis = Analysis { failure: above(0.01), ..Analysis::default() };
    assert_eq!(analysis.sees(s(120)), "4 measurements in a bake of 2m; it notices a single measurement above 0.01");
    let lasting = Analysis { lasting_ms: 60_000, failure_limit: 1, ..analysis.clone() };
    assert_eq!(lasting.sees(s(120)), "4 measurements in a bake of 2m; it notices 4 measurements above 0.01");
    assert_eq!(
        lasting.sees(s(60)),
        "2 measurements in a bake of 1m; it notices nothing: it takes 4 measurements above 0.01, and there is room for 2"
    );
    let compared = Analysis { compare: Some(Compare { tolerance: 10, ..Compare::default() }), ..Analysis::default() };
    assert_eq!(
        compared.sees(s(300)),
        "10 measurements in a bake of 5m; it notices a difference to the baseline where the new release is higher by more than 10 % in 87 of 100 pairs"
    );
    assert!(compared.sees(s(60)).ends_with("no difference to the baseline: that takes 4 measurements a side"));
}

#[test]
fn when_it_fires_is_said_in_words() {
    let fires = |change: fn(&mut Analysis)| {
        let mut analysis = Analysis::default();
        change(&mut analysis);
        analysis.fires()
    };
    assert_eq!(fires(|a| (a.failure, a.lasting_ms) = (above(0.01), 120_000)), "above 0.01 for 2m");
    assert_eq!(fires(|a| (a.success, a.failure_limit) = (below(3.0), 1)), "not below 3, in more than 1 measurement");
    let both: fn(&mut Analysis) =
        |a| (a.failure, a.compare) = (above(5.0), Some(Compare { worse: Worse::Lower, tolerance: 5 }));
    assert_eq!(fires(both), "above 5, or lower than the baseline by more than 5 %");
}

#[test]
fn what_is_promised_of_a_plan_is_noticed() {
    // As many bad values as the plan names, and not one less, fail it.
    for (lasting, limit) in [(0, 0), (0, 2), (60_000, 0), (90_000, 1), (45_000, 0)] {
        let analysis =
            Analysis { failure: above(0.0), lasting_ms: lasting, failure_limit: limit, ..Analysis::default() };
        let needed =
            (1..20u32).find(|n| assess(&analysis, &"1 ".repeat(*n as usize), false).0 == Verdict::Fail).unwrap();
        let sees = analysis.sees(s(30 * u64::from(needed)));
        let how = if needed == 1 {
            "a single measurement above 0".to_owned()
        } else {
            format!("notices {needed} measurements above 0")
        };
        assert!(sees.contains(&how), "{sees}");
        assert!(analysis.sees(s(30 * u64::from(needed - 1))).contains("nothing"), "{lasting} {limit}");
    }
}

#[test]
fn the_baseline_is_as_large_as_the_canary_and_near_it() {
    let host = |name: &str, zone: &str| super::super::host::Host {
        zone: Some(zone.to_owned()),
        ..super::super::host::Host::at(name.parse().unwrap(), name.to_owned())
    };
    let (canary, others) = ([host("a", "z2"), host("b", "z2")], [host("e", "z2"), host("d", "z1"), host("c", "z1")]);
    let found = baseline(&canary.iter().collect::<Vec<_>>(), &others.iter().collect::<Vec<_>>());
    assert_eq!(found.iter().map(|host| host.name.as_str()).collect::<Vec<_>>(), ["e", "c"]);
    assert!(baseline(&[&canary[0]], &[]).is_empty());
}

/// xorshift64* (Vigna 2016): the same cases each time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn small(&mut self) -> u32 {
        u32::try_from(self.below(4)).unwrap()
    }
}

#[test]
fn whatever_is_measured_the_rules_hold() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut passed, mut failed, mut unsure) = (0, 0, 0);
    for _ in 0..20_000 {
        let analysis = Analysis {
            success: (random.below(2) == 0).then(|| below(3.0).unwrap()),
            failure: above(6.0),
            lasting_ms: random.below(3) * 30_000,
            count: (random.below(2) == 0).then(|| random.small() + 1),
            failure_limit: random.small(),
            inconclusive_limit: random.small(),
            consecutive_error_limit: random.small(),
            consecutive_success_limit: (random.below(4) == 0).then(|| random.small() + 1),
            min_samples: random.small(),
            ..Analysis::default()
        };
        let mut series = Series::new("x", &analysis);
        let mut was = Verdict::Open;
        let (mut bad, mut phases) = (0, Vec::new());
        for n in 0..random.below(12) {
            let found = match random.below(12) {
                value @ 0..9 => Found::Value(value as f64, None),
                9 => Found::NoData(None),
                10 => Found::Value(f64::NAN, None),
                _ => Found::Error(Cause::new("x", "x")),
            };
            bad += u32::from(matches!(&found, Found::Value(value, _) if *value > 6.0));
            phases.push(series.see(&Measurement { at: s(30 * (n + 1)), found, baseline: None }));
            let now = series.assess(false).verdict;
            // A failed analysis stays one, and none fails without as many bad values.
            assert!(was != Verdict::Fail || now == Verdict::Fail, "{analysis:?} {phases:?}");
            assert!(now != Verdict::Fail || bad > analysis.failure_limit || analysis.success.is_some());
            was = now;
        }
        let over = series.assess(true);
        let with_data = phases.iter().filter(|p| !matches!(p, Phase::Nothing | Phase::Pending)).count();
        let fails = phases.iter().filter(|p| **p == Phase::Failed).count();
        match over.verdict {
            Verdict::Open => panic!("over and still open: {analysis:?} {phases:?}"),
            Verdict::Fail => {
                assert!(fails > analysis.failure_limit as usize);
                failed += 1;
            }
            Verdict::Pass => {
                assert!(fails <= analysis.failure_limit as usize && with_data >= analysis.min_samples as usize);
                assert!(!matches!(phases.last(), None | Some(Phase::Nothing | Phase::Pending)), "{phases:?}");
                passed += 1;
            }
            Verdict::Inconclusive => {
                assert!(fails <= analysis.failure_limit as usize);
                unsure += 1;
            }
        }
        assert!(over.message.starts_with("x ") && !over.message.contains("NaN"), "{}", over.message);
    }
    assert!(passed > 500 && failed > 500 && unsure > 500, "{passed} {failed} {unsure}");
}
