//! What `setup` needs to know without touching the machine: programs and their packages, and how to read what apt and
//! os-release say.

/// A program that building, testing, the demo or the benchmark uses.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// Debian packages that hold it, the preferred one first: they differ between releases.
    pub(crate) packages: &'static [&'static str],
    /// Packages that it is of no use without, and that would only be recommended.
    pub(crate) with: &'static [&'static str],
    pub(crate) purpose: &'static str,
}

pub(crate) const PROGRAMS: &[Program] = &[
    Program { name: "gcc", packages: &["gcc"], with: &["libc6-dev"], purpose: "linking, and the C in dependencies" },
    program("dockerd", &["docker.io"], "containers, in tests and demo"),
    // Debian 13 split the client off; without recommended packages docker.io alone does not bring it.
    program("docker", &["docker-cli", "docker.io"], "containers, in tests and demo"),
    program("ip", &["iproute2"], "network namespaces in tests and demo"),
    program("ss", &["iproute2"], "sockets, in tests"),
    program("ping", &["iputils-ping"], "packets that are not steered, in tests"),
    program("ethtool", &["ethtool"], "offload settings of test interfaces"),
    program("iptables", &["iptables"], "Docker's published ports, in tests and benchmark"),
    program("nft", &["nftables"], "firewall rules in tests"),
    program("tcpdump", &["tcpdump"], "comparing packets in tests"),
    program("curl", &["curl"], "clients in tests and demo"),
    program("ab", &["apache2-utils"], "load in tests and benchmark"),
    program("docker-compose", &["docker-compose"], "the Compose test"),
    program("haproxy", &["haproxy"], "comparison in the benchmark"),
    program("bpftool", &["bpftool", "linux-tools-common"], "looking into maps"),
];

pub(crate) const fn program(name: &'static str, packages: &'static [&'static str], purpose: &'static str) -> Program {
    Program { name, packages, with: &[], purpose }
}

/// Is this system, by the text of its os-release file, one where Debian's package names hold?
pub(crate) fn is_debian_like(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| ["ID", "ID_LIKE"].contains(key))
        .flat_map(|(_, value)| value.trim_matches(['"', '\'']).split_whitespace())
        .any(|id| ["debian", "ubuntu"].contains(&id))
}

/// Can the package be installed, by the text of `apt-cache policy <package>`? A virtual package has no candidate.
pub(crate) fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate:"))
        .any(|candidate| !["", "(none)"].contains(&candidate.trim()))
}

/// The packages that bring these programs, each once, taking the first alternative that can be installed.
pub(crate) fn packages_for(programs: &[&Program], can_install: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for program in programs {
        let [preferred, ..] = program.packages else { continue };
        let package = *program.packages.iter().find(|package| can_install(package)).unwrap_or(preferred);
        for package in [package].into_iter().chain(program.with.iter().copied()) {
            if !packages.contains(&package) {
                packages.push(package);
            }
        }
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_what_is_made_of_it_have_debians_packages() {
        for (text, expected) in [
            ("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n", true),
            ("ID=ubuntu\nID_LIKE=debian\n", true),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", true),
            ("ID=fedora\nVERSION_ID=42\n", false),
            ("ID=arch\nHOME_URL=\"like debian\"\n", false),
            ("", false),
        ] {
            assert_eq!(is_debian_like(text), expected, "{text}");
        }
    }

    #[test]
    fn a_package_without_candidate_cannot_be_installed() {
        assert!(has_candidate("ethtool:\n  Installed: (none)\n  Candidate: 1:6.1-1\n  Version table:\n"));
        assert!(!has_candidate("bpftool:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }

    #[test]
    fn the_client_is_a_package_of_its_own_only_where_it_exists() {
        let both: Vec<_> = PROGRAMS.iter().filter(|program| ["dockerd", "docker"].contains(&program.name)).collect();
        assert_eq!(packages_for(&both, |_| true), ["docker.io", "docker-cli"]);
        assert_eq!(packages_for(&both, |package| package != "docker-cli"), ["docker.io"]);
        assert_eq!(packages_for(&both, |_| false), ["docker.io", "docker-cli"]);
    }

    #[test]
    fn the_compiler_comes_with_the_headers_that_it_only_recommends() {
        let gcc: Vec<_> = PROGRAMS.iter().filter(|program| program.name == "gcc").collect();
        assert_eq!(packages_for(&gcc, |_| true), ["gcc", "libc6-dev"]);
    }

    #[test]
    fn what_tests_ask_for_by_name_is_installed() {
        let tests = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests")).unwrap();
        let files = tests.map(|entry| entry.unwrap().path()).filter(|path| path.extension() == Some("rs".as_ref()));
        let mut asked = 0;
        for text in files.map(|path| std::fs::read_to_string(path).unwrap()) {
            for named in text.split("Need::Program(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(PROGRAMS.iter().any(|program| program.name == named), "{named}");
                asked += 1;
            }
        }
        assert!(asked > 0);
    }
}
