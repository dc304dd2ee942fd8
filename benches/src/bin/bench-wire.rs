//! `bench-wire`: peers measured beside us on a veth pair; see [`avio_benches::wire`].

fn main() -> std::process::ExitCode {
    avio_benches::wire::main()
}
