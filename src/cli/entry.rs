//! From the arguments of the process to its exit code.

use super::arguments::{Cli, Command};
use super::{commands, output, signals};
use crate::error::{Error, ErrorKind, Result};
use crate::parallel;
use crate::runtime::refuse_telemetry;
use clap::{CommandFactory, Parser};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;

/// Runs the command line of this process. Exit codes: 0 done, 1 a check or target was not met, 2 bad usage or bad
/// input, 3 internal fault.
pub fn main() -> ExitCode {
    // Panics are reported once, below; those inside a runtime are turned into errors where they happen.
    std::panic::set_hook(Box::new(|info| {
        let what = text(info.payload());
        if what.starts_with(FINAL) {
            end_in_runtime();
        }
        if let (Some(at), Ok(mut last)) = (info.location(), LAST.lock()) {
            *last = (at.to_string(), what);
        }
    }));
    refuse_telemetry();
    signals::explain_lost_files();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let code = if e.use_stderr() { 2 } else { 0 };
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    let work = || join(&cli.command).and_then(|()| dispatch(&cli));
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let place = LAST.lock().map(|p| p.0.clone()).unwrap_or_default();
        let what = text(&*panic);
        Err(Error::new(ErrorKind::Internal, format!("internal fault at {place}: {what}"))
            .hint("this is a defect of Offshoot: please report it with the command and the model"))
    });
    match result {
        Err(e) if !output::is_broken_pipe(&e) => {
            output::error(&e);
            parallel::fail(e.exit_code())
        }
        Err(_) => parallel::fail(0),
        Ok(()) => {
            parallel::finish();
            ExitCode::SUCCESS
        }
    }
}

/// Where the last panic was, and what it said.
static LAST: Mutex<(String, String)> = Mutex::new((String::new(), String::new()));

/// What the panic says that follows one which would pass a border to C (tract stands behind one): the process is
/// aborted after it.
const FINAL: &str = "panic in a function that cannot unwind";

/// Ends the process in order, with a message, where a panic inside a runtime would abort it.
fn end_in_runtime() -> ! {
    let (place, what) = LAST.lock().map(|last| last.clone()).unwrap_or_default();
    let error = Error::new(ErrorKind::Internal, format!("the runtime panicked at {place}: {what}"))
        .hint("another runtime may run the graph (--runtime); please report it with the command and the model");
    output::error(&error);
    parallel::abort(error.exit_code())
}

/// What a panic says.
fn text(payload: &(dyn std::any::Any + Send)) -> String {
    let owned = payload.downcast_ref::<String>().cloned();
    owned.or_else(|| payload.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default()
}

/// Joins the processes that a launcher started, for the commands that share their work out.
fn join(command: &Command) -> Result<()> {
    match command {
        // Processes of a study share nothing but a folder, however they were started.
        Command::Study(_) => Ok(()),
        Command::Density(_) | Command::Condense(_) | Command::Shrink(_) | Command::Tune(_) => parallel::start(),
        _ => match parallel::launched() {
            Some(launched) if launched.size > 1 => Err(Error::new(
                ErrorKind::Usage,
                format!("{} processes were started, and this command works in one", launched.size),
            )
            .hint("leave `mpirun` out; density, condense, shrink, tune and study share their work out")),
            _ => Ok(()),
        },
    }
}

fn dispatch(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Doctor(c) => commands::doctor::run(c),
        Command::Inspect(c) => commands::inspect::run(c),
        Command::Density(c) => commands::density::run(c),
        Command::Condense(c) => commands::condense::run(c),
        Command::Grow(c) => commands::grow::run(c),
        Command::Shrink(c) => commands::shrink::run(c),
        Command::Tune(c) => commands::tune::run(c),
        Command::Run(c) => commands::run::run(c),
        Command::Eval(c) => commands::eval::run(c),
        Command::Study(c) => commands::study::run(c),
        Command::Compare(c) => commands::compare::run(c),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "offshoot", &mut text);
            output::print(&String::from_utf8_lossy(&text))
        }
        Command::Man => {
            let mut text = Vec::new();
            manual(&mut text).map_err(|e| Error::new(ErrorKind::Io, e.to_string()))?;
            output::print(&String::from_utf8_lossy(&text))
        }
    }
}

/// The man page: the command itself, then a part for each subcommand.
fn manual(out: &mut Vec<u8>) -> std::io::Result<()> {
    let command = Cli::command();
    clap_mangen::Man::new(command.clone()).render(out)?;
    for sub in command.get_subcommands().filter(|s| !s.is_hide_set()) {
        let page = clap_mangen::Man::new(sub.clone().bin_name(format!("offshoot {}", sub.get_name())));
        page.render_name_section(out)?;
        page.render_synopsis_section(out)?;
        page.render_description_section(out)?;
        page.render_options_section(out)?;
        page.render_extra_section(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for sub in Cli::command().get_subcommands() {
            let help = sub.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "{} has no example", sub.get_name());
        }
    }

    #[test]
    fn the_manual_names_every_command() {
        let mut page = Vec::new();
        manual(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        for sub in Cli::command().get_subcommands() {
            assert!(page.contains(sub.get_name()), "{}", sub.get_name());
        }
    }
}
