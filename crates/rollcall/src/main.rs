//! The `rollcall` program. What it does is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    rollcall::run(std::env::args_os())
}
