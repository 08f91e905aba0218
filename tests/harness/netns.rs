//! Network namespaces: make one, act inside it, remove it with everything that runs in it.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::programs;

/// Where iproute2 keeps the names, so that `ip netns exec <name>` works for whoever looks at a test that hangs.
pub(crate) const NAMES: &str = "/run/netns";

/// A network namespace. Clones are handles; the [`World`](crate::World) that made it removes it.
#[derive(Clone, Debug)]
pub struct Ns {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Empty for the namespace of this process, which has none.
    name: String,
    file: File,
}

impl Ns {
    /// Makes a namespace with loopback up.
    pub(crate) fn create(name: &str) -> Self {
        run("ip", &format!("netns add {name}"));
        let file = File::open(PathBuf::from(NAMES).join(name)).expect("ip netns add leaves a file to open");
        let ns = Self { inner: Arc::new(Inner { name: name.to_owned(), file }) };
        ns.ip("link set lo up");
        ns
    }

    /// The namespace this process lives in. Nobody may remove that.
    pub(crate) fn own() -> Self {
        let file = File::open("/proc/self/ns/net").expect("a process has a network namespace");
        Self { inner: Arc::new(Inner { name: String::new(), file }) }
    }

    /// The namespace of a process, such as a container's: to act inside it, not for iproute2, which knows no name of it.
    pub(crate) fn of_process(pid: i32) -> Self {
        let name = format!("/proc/{pid}/ns/net");
        let file = File::open(&name).unwrap_or_else(|err| panic!("open {name}: {err}"));
        Self { inner: Arc::new(Inner { name, file }) }
    }

    pub(crate) fn is_own(&self) -> bool {
        self.inner.name.is_empty()
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// What `ip link … netns` takes: the name, or the id of a process inside.
    pub(crate) fn handle(&self) -> String {
        if self.is_own() { std::process::id().to_string() } else { self.inner.name.clone() }
    }

    /// The namespace as a file, for `setns` and for static backends of steer's configuration.
    pub fn path(&self) -> PathBuf {
        if self.is_own() {
            return format!("/proc/{}/ns/net", std::process::id()).into();
        }
        PathBuf::from(NAMES).join(&self.inner.name)
    }

    /// The namespace as a backend of a static service, in a configuration's words.
    pub fn backend(&self, name: &str) -> String {
        format!("[[service.backend]]\nname = \"{name}\"\nnetns = \"{}\"\n", self.path().display())
    }

    /// The inode of the namespace; it is what tells two namespaces apart.
    pub fn inode(&self) -> u64 {
        self.inner.file.metadata().expect("an open namespace has metadata").ino()
    }

    /// Runs `work` on a thread inside this namespace, and hands back its result or its panic. `/sys` is still the
    /// caller's.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let outcome = thread::scope(|scope| {
            let inside = || {
                self.enter();
                work()
            };
            scope.spawn(inside).join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a thread inside this namespace.
    pub fn spawn<T: Send + 'static>(&self, name: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let ns = self.clone();
        let inside = move || {
            ns.enter();
            work()
        };
        thread::Builder::new().name(name.to_owned()).spawn(inside).expect("a thread can be started")
    }

    fn enter(&self) {
        setns(&self.inner.file, CloneFlags::CLONE_NEWNET).expect("setns into an open namespace, as root");
    }

    /// A command that will run inside this namespace, in the mounts of the caller, and that dies with the thread that
    /// starts it.
    pub fn command(&self, program: impl Into<PathBuf>) -> Command {
        self.command_dying_by(program, Signal::SIGKILL)
    }

    pub(crate) fn command_dying_by(&self, program: impl Into<PathBuf>, signal: Signal) -> Command {
        let program = program.into();
        let found = program.to_str().filter(|name| !name.contains('/')).and_then(programs::find);
        let mut command = Command::new(found.unwrap_or(program));
        // Ctrl-C on a terminal goes to a whole group: what is started here is ended by its guard, in order.
        command.process_group(0);
        let inner = self.inner.clone();
        let enter = move || {
            setns(inner.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            nix::sys::prctl::set_pdeathsig(signal)?;
            Ok(())
        };
        // SAFETY: between fork and exec only two system calls are made, on a descriptor that the closure keeps open;
        // nothing is allocated and no lock is taken.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// `ip <words>` inside this namespace; panics with ip's own words.
    #[track_caller]
    pub fn ip(&self, words: &str) {
        if self.is_own() {
            run("ip", words);
        } else {
            run("ip", &format!("-n {} {words}", self.inner.name));
        }
    }

    /// Runs `program <words>` inside this namespace to its end and returns what it printed; panics when it fails.
    #[track_caller]
    pub fn output(&self, program: &str, words: &str) -> String {
        finish(&mut self.command(program), program, words)
    }

    /// Sets a per-namespace sysctl, as in `sysctl("net/ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, path: &str, value: &str) {
        let path = format!("/proc/sys/{path}");
        // The kernel looks at the namespace of the thread that opens the file.
        self.run(|| std::fs::write(&path, value)).unwrap_or_else(|err| panic!("write {path}: {err}"));
    }

    /// A TCP connection from inside this namespace, from `local` if given (`SO_REUSEADDR` is set; port 0 = any).
    pub fn connect(&self, to: SocketAddr, local: Option<SocketAddr>, limit: Duration) -> io::Result<TcpStream> {
        self.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            if let Some(local) = local {
                socket.set_reuse_address(true)?;
                socket.bind(&local.into())?;
            }
            socket.connect_timeout(&to.into(), limit)?;
            socket.set_tcp_nodelay(true)?;
            Ok(socket.into())
        })
    }
}

/// Runs a program of the system with words split at blanks; panics when it fails.
#[track_caller]
pub(crate) fn run(program: &str, words: &str) -> String {
    let path = programs::find(program).unwrap_or_else(|| program.into());
    finish(&mut Command::new(path), program, words)
}

#[track_caller]
fn finish(command: &mut Command, program: &str, words: &str) -> String {
    let output = command.args(words.split_whitespace()).output();
    let output = output.unwrap_or_else(|err| panic!("{program} {words}: {err}"));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words}: {}: {err}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
