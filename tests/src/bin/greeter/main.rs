//! The app inside the test containers: greets over HTTP, echoes over TCP, and leaves the way it is told to.
//!
//! Problem: what steer can save depends on how an app behaves around its start and its stop signal, so the tests need
//! one program that can behave in every way that is met in the field. Approach: one thread, HTTP by hand, options as
//! flags or as environment variables, no file but itself in the image. `SIGTERM` leaves as `--on-term` says, `SIGQUIT`
//! leaves in order whatever `--on-term` says, `SIGUSR1` flips the health answer, `SIGUSR2` closes or reopens the
//! listeners; the last two also stand for signals that must *not* drain a backend. It dies by `GET /crash` and
//! `GET /oom`.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream as StdStream};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

mod http;

const BACKLOG: u32 = 4096;

#[derive(Parser)]
#[command(about = "HTTP greeter and TCP echo for steer's tests", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Subcommand)]
enum Command {
    /// Ask a greeter on this machine for /healthz: exit code 0 or 1
    Health {
        #[arg(long, env = "GREETER_PORT", default_value_t = 5000)]
        port: u16,
        /// Seconds for the connection, and for the answer
        #[arg(long, default_value_t = 2)]
        limit: u64,
    },
}

#[derive(Args, Clone)]
struct Serve {
    /// Address to listen on
    #[arg(long, env = "GREETER_BIND", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    bind: IpAddr,
    /// Listen with SO_REUSEPORT, beside others that do
    #[arg(long, env = "GREETER_REUSE_PORT")]
    reuse_port: bool,
    /// Port of the HTTP server
    #[arg(long, env = "GREETER_PORT", default_value_t = 5000)]
    port: u16,
    /// Port of the echo server; the byte `?` is answered with the greeter's name and a newline
    #[arg(long, env = "GREETER_ECHO_PORT", default_value_t = 5001)]
    echo_port: u16,
    /// Name in the greeting and in X-Backend [default: the host name]
    #[arg(long, env = "GREETER_NAME")]
    name: Option<String>,
    /// Version in the greeting and in X-Version
    #[arg(long, env = "GREETER_VERSION", default_value = "v1")]
    version: String,
    /// Seconds between start and listening, as an app that warms up
    #[arg(long, env = "GREETER_LISTEN_AFTER", default_value_t = 0.0)]
    listen_after: f64,
    /// What SIGTERM does
    #[arg(long, env = "GREETER_ON_TERM", value_enum, default_value_t = OnTerm::Close)]
    on_term: OnTerm,
    /// Seconds the listeners stay open after SIGTERM with `--on-term close`
    #[arg(long, env = "GREETER_CLOSE_AFTER", default_value_t = 0.0)]
    close_after: f64,
    /// Seconds after SIGTERM at which it exits even with open connections; the default is within the 10 s of `docker
    /// stop`
    #[arg(long, env = "GREETER_GRACE", default_value_t = 8.0)]
    grace: f64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum OnTerm {
    /// Close the listeners, finish what is open, exit
    Close,
    /// The same, but whoever waits in the accept queues is reset, as by the kernel where an app just closes; `abandoned: <how many>` on
    /// standard output
    Abandon,
    /// Serve old and new connections through the grace, then exit
    Serve,
    /// Do nothing
    Ignore,
}

/// What every connection of one greeter shares.
struct App {
    name: String,
    version: String,
    leaving: Cell<bool>,
    unhealthy: Cell<bool>,
    open: Cell<usize>,
    one_closed: Notify,
}

/// Counts a connection for as long as it lives.
struct Open(Rc<App>);

impl Open {
    fn new(app: &Rc<App>) -> Self {
        app.open.set(app.open.get() + 1);
        Self(app.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.one_closed.notify_one();
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Health { port, limit }) = cli.command {
        return if is_healthy(port, Duration::from_secs(limit)) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(LocalSet::new().run_until(serve(cli.serve)))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("greeter: {err}");
            ExitCode::FAILURE
        }
    }
}

fn is_healthy(port: u16, limit: Duration) -> bool {
    use std::io::{Read, Write};
    let ask = || -> io::Result<bool> {
        let mut stream = StdStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split(' ').nth(1) == Some("200"))
    };
    ask().unwrap_or(false)
}

/// The whole life: warm up, listen, serve until a signal says otherwise.
async fn serve(options: Serve) -> io::Result<()> {
    // As PID 1 of a container every signal without a handler is ignored by the kernel: handlers come before anything
    // else.
    let mut term = signal(SignalKind::terminate())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut flip_health = signal(SignalKind::user_defined1())?;
    let mut flip_listeners = signal(SignalKind::user_defined2())?;

    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = options.name.clone().unwrap_or_else(|| host_name.trim().to_owned());
    let app = Rc::new(App {
        name,
        version: options.version.clone(),
        leaving: Cell::new(false),
        unhealthy: Cell::new(false),
        open: Cell::new(0),
        one_closed: Notify::new(),
    });
    let ignores = options.on_term == OnTerm::Ignore;
    tokio::select! {
        () = sleep(Duration::from_secs_f64(options.listen_after)) => {}
        _ = term.recv(), if !ignores => return Ok(()),
        _ = quit.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    let mut web = Some(listen(&options, options.port)?);
    let mut echo = Some(listen(&options, options.echo_port)?);
    // Far away until a stop signal brings them near.
    let (mut close_at, mut exit_at) = (None, None);
    loop {
        tokio::select! {
            accepted = accept(web.as_ref()) => greet_on(&app, accepted).await,
            accepted = accept(echo.as_ref()) => echo_on(&app, accepted).await,
            on_stop = stopped(&mut term, &mut quit, options.on_term), if exit_at.is_none() => {
                let now = tokio::time::Instant::now();
                match on_stop {
                    OnTerm::Ignore => continue,
                    OnTerm::Serve => {}
                    OnTerm::Close => {
                        app.leaving.set(true);
                        close_at = Some(now + Duration::from_secs_f64(options.close_after));
                    }
                    OnTerm::Abandon => {
                        app.leaving.set(true);
                        abandon(&mut web, &mut echo)?;
                    }
                }
                exit_at = Some(now + Duration::from_secs_f64(options.grace));
            }
            () = until(close_at), if web.is_some() => {
                // Connections whose handshake is done and that nobody accepted yet are the app's duty: the kernel would
                // reset them.
                for left in drain(web.take()) { greet_on(&app, Ok(left)).await }
                for left in drain(echo.take()) { echo_on(&app, Ok(left)).await }
            }
            // `select!` looks at a condition once, before it waits: how many are open is asked below, after each.
            () = app.one_closed.notified(), if app.leaving.get() => {}
            () = until(exit_at) => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = flip_health.recv() => app.unhealthy.set(!app.unhealthy.get()),
            _ = flip_listeners.recv() => {
                match web {
                    Some(_) => abandon(&mut web, &mut echo)?,
                    None => {
                        web = Some(listen(&options, options.port)?);
                        echo = Some(listen(&options, options.echo_port)?);
                    }
                }
            }
        }
        if app.leaving.get() && web.is_none() && app.open.get() == 0 {
            return Ok(());
        }
    }
}

/// Waits for a stop signal, and says how to leave.
async fn stopped(
    term: &mut tokio::signal::unix::Signal,
    quit: &mut tokio::signal::unix::Signal,
    on_term: OnTerm,
) -> OnTerm {
    tokio::select! {
        _ = term.recv() => on_term,
        _ = quit.recv() => OnTerm::Close,
    }
}

fn listen(options: &Serve, port: u16) -> io::Result<TcpListener> {
    let socket = if options.bind.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(options.reuse_port)?;
    socket.bind(SocketAddr::from((options.bind, port)))?;
    socket.listen(BACKLOG)
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Closes, and resets whoever waits in the accept queues, as the kernel would; but says how many: a test that counts resets reads it
/// in the log.
fn abandon(web: &mut Option<TcpListener>, echo: &mut Option<TcpListener>) -> io::Result<()> {
    let waiting: Vec<_> = [web.take(), echo.take()].into_iter().flat_map(drain).collect();
    waiting.iter().try_for_each(|(stream, _)| stream.set_zero_linger())?;
    println!("abandoned: {}", waiting.len());
    Ok(())
}

/// Takes what waits in the accept queue, then closes.
fn drain(listener: Option<TcpListener>) -> Vec<(TcpStream, SocketAddr)> {
    let Some(Ok(listener)) = listener.map(TcpListener::into_std) else { return Vec::new() };
    let take = || {
        let (stream, peer) = listener.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer))
    };
    std::iter::from_fn(take).collect()
}

async fn greet_on(app: &Rc<App>, accepted: io::Result<(TcpStream, SocketAddr)>) {
    match accepted {
        Ok((stream, peer)) => {
            let open = Open::new(app);
            spawn_local(async move {
                // A client that goes away in the middle is its own business.
                drop(http::serve(&open.0, stream, peer).await);
            });
        }
        // Out of descriptors: accepting again at once would spin.
        Err(_) => sleep(Duration::from_millis(10)).await,
    }
}

async fn echo_on(app: &Rc<App>, accepted: io::Result<(TcpStream, SocketAddr)>) {
    match accepted {
        Ok((stream, _)) => {
            let open = Open::new(app);
            spawn_local(async move { drop(repeat(&open.0, stream).await) });
        }
        Err(_) => sleep(Duration::from_millis(10)).await,
    }
}

async fn repeat(app: &App, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).await?;
        match &buffer[..n] {
            [] => return Ok(()),
            b"?" => stream.write_all(format!("{}\n", app.name).as_bytes()).await?,
            bytes => stream.write_all(bytes).await?,
        }
    }
}
