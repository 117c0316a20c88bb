//! Runs the fuzz targets without a fuzzer: `fuzz TARGET|all [INPUTS] [SEED] [FIRST]`, or `fuzz seeds FOLDER`. Without a
//! number of inputs, each target gets as many as it can take in some seconds.
//!
//! Inputs are made from seeds by mutations that a number decides, so a run says the same again, on any machine. A
//! panic, more than 10 s or more than 2 GB for one input ends it with the input in a file. libFuzzer, which looks for
//! inputs that reach new code, runs the same targets from `fuzz/`.

mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{ExitCode, abort};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use targets::{TARGETS, Target};

const SECONDS: u64 = 10;
const BYTES: usize = 2 << 30;

/// The system's allocator, which counts.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    PEAK.fetch_max(IN_USE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        IN_USE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The input that runs now, and since when.
static NOW: Mutex<Option<(&str, u64, Instant)>> = Mutex::new(None);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (which, rest) = match words[..] {
        ["seeds", folder] => return write_seeds(Path::new(folder)),
        [which, ref rest @ ..] if which == "all" || targets::target(which).is_some() => (which, rest),
        _ => {
            let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
            eprintln!("usage: fuzz all|{} [INPUTS] [SEED] [FIRST], or fuzz seeds FOLDER", names.join("|"));
            return ExitCode::from(2);
        }
    };
    let number = |k: usize, default: u64| rest.get(k).and_then(|n| n.parse().ok()).unwrap_or(default);
    // Panics that are caught and turned into errors say nothing here.
    std::panic::set_hook(Box::new(|info| *PLACE.lock().unwrap_or_else(|e| e.into_inner()) = info.to_string()));
    std::thread::spawn(watch);
    let mut sound = true;
    for target in TARGETS.iter().filter(|t| which == "all" || which == t.name) {
        sound &= run(target, number(0, target.smoke), number(1, 0), number(2, 0));
    }
    targets::clean_up();
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Where the last panic was.
static PLACE: Mutex<String> = Mutex::new(String::new());

/// The input of a number, which is none of the others' business.
fn input(target: &Target, seeds: &[Vec<u8>], seed: u64, number: u64) -> Vec<u8> {
    let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number);
    let start = &seeds[(number % seeds.len() as u64) as usize];
    // The seeds themselves come first.
    if number < seeds.len() as u64 { start.clone() } else { (target.mutate)(start, seed) }
}

fn run(target: &'static Target, inputs: u64, seed: u64, first: u64) -> bool {
    let seeds = (target.seeds)();
    let start = Instant::now();
    let mut findings = Vec::<String>::new();
    let mut accepted = 0;
    let (mut slowest, mut largest) = ((Duration::ZERO, 0), (0, 0));
    for number in first..first + inputs {
        let data = input(target, &seeds, seed, number);
        let (before, began) = (IN_USE.load(Relaxed), Instant::now());
        PEAK.store(before, Relaxed);
        *NOW.lock().unwrap_or_else(|e| e.into_inner()) = Some((target.name, number, began));
        let ran = catch_unwind(AssertUnwindSafe(|| (target.run)(&data)));
        accepted += u64::from(matches!(ran, Ok(true)));
        slowest = slowest.max((began.elapsed(), number));
        let bytes = PEAK.load(Relaxed).saturating_sub(before);
        largest = largest.max((bytes, number));
        let what = match () {
            _ if ran.is_err() => PLACE.lock().unwrap_or_else(|e| e.into_inner()).clone(),
            _ if bytes > BYTES => format!("{} MB", bytes >> 20),
            _ => continue,
        };
        // One of each kind: a defect is found over and over.
        let kind: String = what.lines().next().unwrap_or_default().to_string();
        if !findings.contains(&kind) {
            println!("{}: input {number}: {what}", target.name);
            save(target.name, number, &data);
            findings.push(kind);
        }
    }
    *NOW.lock().unwrap_or_else(|e| e.into_inner()) = None;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}: {inputs} inputs in {seconds:.1} s, {accepted} accepted, {} findings; the slowest took {:.0} ms (input \
         {}), the largest {} MB (input {})",
        target.name,
        findings.len(),
        slowest.0.as_secs_f64() * 1e3,
        slowest.1,
        largest.0 >> 20,
        largest.1
    );
    findings.is_empty()
}

fn save(target: &str, number: u64, data: &[u8]) {
    let path = format!("fuzz-{target}-{number}.tmp");
    match std::fs::write(&path, data) {
        Ok(()) => println!("the input is in {path}"),
        Err(e) => println!("the input cannot be written to {path}: {e}"),
    }
}

/// Ends the process where an input takes too long.
fn watch() {
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = *NOW.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((target, number, since)) = now
            && since.elapsed() > Duration::from_secs(SECONDS)
        {
            println!("{target}: input {number} takes more than {SECONDS} s");
            abort();
        }
    }
}

/// Writes the seeds of every target as files, for libFuzzer.
fn write_seeds(folder: &Path) -> ExitCode {
    for target in TARGETS {
        let folder = folder.join(target.name);
        let written = std::fs::create_dir_all(&folder).and_then(|()| {
            let mut seeds = (target.seeds)().into_iter().enumerate();
            seeds.try_for_each(|(k, seed)| std::fs::write(folder.join(format!("{k:03}")), seed))
        });
        if let Err(e) = written {
            eprintln!("{}: {e}", folder.display());
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
