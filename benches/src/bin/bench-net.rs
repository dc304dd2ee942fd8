//! `bench-net`: peers measured beside us; see [`avio_benches::net`].

fn main() -> std::process::ExitCode {
    avio_benches::net::main()
}
