//! `bench-stor`: peers measured beside us; see [`avio_benches::stor`].

fn main() -> std::process::ExitCode {
    avio_benches::stor::main()
}
