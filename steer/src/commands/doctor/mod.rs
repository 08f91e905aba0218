//! `steer doctor`: what this host offers and what is in the way, with the remedy.
//!
//! [`probe`] looks, [`rules`] judges (pure), this file prints.

mod probe;
mod rules;

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use self::rules::{Finding, Severity};
use crate::cli::DoctorArgs;
use crate::dataplane::paths::Paths;

pub(super) async fn doctor(args: &DoctorArgs, paths: &Paths) -> anyhow::Result<ExitCode> {
    let findings = rules::judge(&probe::facts(args, paths).await);
    if args.json {
        super::print_json(&Report { ok: passed(&findings), findings: &findings })?;
    } else {
        super::print(&text(&findings))?;
    }
    Ok(if passed(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    findings: &'a [Finding],
}

fn passed(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.severity != Severity::Fail)
}

/// One line per finding, the remedy under it.
fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.subject.chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { severity, subject, found, remedy } in findings {
        let word = severity.word();
        // Writing to a string does not fail.
        let _ = writeln!(text, "{word:4}  {subject:width$}  {found}");
        if let Some(remedy) = remedy {
            let _ = writeln!(text, "{:indent$}→ {remedy}", "", indent = 4 + 2 + width + 2);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding { severity: Severity::Ok, subject: "kernel".into(), found: "6.18".into(), remedy: None },
            Finding {
                severity: Severity::Fail,
                subject: "cgroup2".into(),
                found: "not known to this kernel".into(),
                remedy: Some("use another kernel".into()),
            },
        ]
    }

    #[test]
    fn people_read_line_by_line() {
        let expected = "\
ok    kernel   6.18
FAIL  cgroup2  not known to this kernel
               → use another kernel
";
        assert_eq!(text(&findings()), expected);
    }

    #[test]
    fn one_failure_fails_the_whole() {
        assert!(!passed(&findings()));
        assert!(passed(&findings()[..1]));
    }

    #[test]
    fn the_shape_of_the_json_is_a_promise() {
        let findings = findings();
        let expected = json!({
            "ok": false,
            "findings": [
                {"severity": "ok", "subject": "kernel", "found": "6.18", "remedy": null},
                {"severity": "fail", "subject": "cgroup2", "found": "not known to this kernel", "remedy": "use another kernel"}
            ]
        });
        assert_eq!(serde_json::to_value(Report { ok: passed(&findings), findings: &findings }).unwrap(), expected);
    }
}
