//! `tbusperf` as its user meets it: what it prints and writes, and its exit status. How fast anything is, is not
//! tested: the machine may be busy, so rounds are kept whatever happened in them.

use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Each measurement polls on two processors; two at a time would wait for each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A directory for the files of a test.
struct Place {
    path: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Place {
    fn new(name: &str) -> Place {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let path = std::env::temp_dir().join(format!("tbusperf-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Place { path, _turn: turn }
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tbusperf"));
        command
            .args(arguments.split_whitespace())
            .current_dir(&self.path);
        command
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a measurement that must go well.
    #[track_caller]
    fn measured(&self, arguments: &str) -> String {
        let output = self.run(&format!("{arguments} --keep-all"));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments}: {error}");
        assert_eq!(error, "", "no bar without a terminal");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.measured(&format!("{arguments} --json"))).unwrap()
    }

    /// What an error says; it must have this exit status.
    #[track_caller]
    fn refused(&self, arguments: &str, status: i32) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments}: {error}");
        assert_eq!(output.stdout, b"", "{arguments}");
        error
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path.join(name)).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.path).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// The numbers of a distribution in JSON agree with each other and with its histogram.
#[track_caller]
fn check_times(times: &Value, count: u64) {
    assert_eq!(times["count"], count);
    let number = |name: &str| times[name].as_f64().unwrap();
    let percentiles = times["percentiles"].as_object().unwrap();
    let mut sorted: Vec<(f64, f64)> = percentiles
        .iter()
        .map(|(percent, value)| (percent.parse().unwrap(), value.as_f64().unwrap()))
        .collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(sorted.is_sorted_by(|a, b| a.1 <= b.1), "{sorted:?}");
    assert_eq!(sorted.last().unwrap().0, 99.99);
    assert!(number("min") > 0.0 && number("min") <= sorted[0].1);
    assert!(sorted.last().unwrap().1 <= number("max"));
    assert!((number("min")..=number("max")).contains(&number("mean")));

    let compressed = base64_decode(times["histogram"].as_str().unwrap());
    let histogram: Histogram<u64> = Deserializer::new()
        .deserialize(&mut compressed.as_slice())
        .unwrap();
    assert_eq!(histogram.len(), count);
    let unit = number("histogram_unit_ns");
    for (percent, value) in sorted {
        let found = histogram.value_at_percentile(percent).min(histogram.max()) as f64;
        assert!((found * unit - value).abs() < 0.1, "{percent} {value}");
    }
}

fn base64_decode(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}

/// A figure's values by round lie around its median.
#[track_caller]
fn check_series(series: &Value, rounds: usize) {
    let values = series["rounds"].as_array().unwrap();
    assert_eq!(values.len(), rounds, "{series}");
    let [low, median, high] = ["low", "median", "high"].map(|n| series[n].as_f64().unwrap());
    assert!(0.0 < low && low <= median && median <= high, "{series}");
}

/// The lines of an SVG's text.
#[track_caller]
fn texts(svg: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(svg).unwrap();
    assert_eq!(document.root_element().tag_name().name(), "svg");
    document
        .descendants()
        .filter(|n| n.has_tag_name("text") || n.parent().is_some_and(|p| p.has_tag_name("text")))
        .filter_map(|n| n.text())
        .map(|t| t.trim().to_string())
        .collect()
}

#[track_caller]
fn has_texts(svg: &str, wanted: &[&str]) {
    let found = texts(svg);
    for text in wanted {
        assert!(found.iter().any(|t| t == text), "no '{text}' in {found:?}");
    }
}

#[test]
fn latencies_in_every_form() {
    let place = Place::new("lat");
    let report = place.json("lat --size 8,1K --count 3000 --rounds 3 --svg lat.svg --hgrm out/");
    assert_eq!(report["format"], "tbusperf");
    assert_eq!(report["format_version"], 1);
    assert_eq!(report["kind"], "lat");
    assert_eq!(report["settings"]["rounds"], 3);
    assert!(!report["machine"]["cpu"].as_str().unwrap().is_empty());
    let kernel = report["machine"]["kernel"].as_str().unwrap();
    assert!(kernel.starts_with("Linux "), "{kernel}");
    let command = report["command"].as_array().unwrap();
    assert!(command.contains(&"--hgrm".into()));
    assert!(["near", "far", "mixed"].contains(&report["regime"].as_str().unwrap()));
    check_series(&report["line"], 6);

    let sizes = report["sizes"].as_array().unwrap();
    assert_eq!(sizes.len(), 2);
    for (row, bytes) in sizes.iter().zip([8, 1024]) {
        assert_eq!(row["bytes"], bytes);
        assert_eq!(row["iterations"], 3000);
        assert_eq!(
            (&row["rounds_run"], &row["rounds_kept"]),
            (&3.into(), &3.into())
        );
        check_times(&row["times"], 3000);
        assert!(row["raw_times"].is_null());
        let figures = &row["figures"];
        for figure in [
            "typical",
            "p50",
            "p99",
            "p99.9",
            "p99.99",
            "line",
            "over_line",
        ] {
            check_series(&figures[figure], 3);
        }
        let at = |name: &str, round: usize| figures[name]["rounds"][round].as_f64().unwrap();
        for round in 0..3 {
            let ratio = at("typical", round) / at("line", round);
            assert!((at("over_line", round) - ratio).abs() < 1e-9);
        }
    }
    has_texts(
        &place.read("lat.svg"),
        &[
            "One-way latency",
            "8 B",
            "1 KiB",
            "limit: cache line",
            "99.9%",
        ],
    );
    for name in ["8.hgrm", "1024.hgrm", "line.hgrm"] {
        check_hgrm(&place.read(&format!("out/{name}")));
    }
    assert_eq!(place.files(), ["lat.svg", "out"]);
}

/// HdrHistogram's percentile text, as its readers take it apart.
#[track_caller]
fn check_hgrm(text: &str) {
    let mut lines = text.lines();
    let header: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        header,
        ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    );
    assert_eq!(lines.next(), Some(""));
    let (comments, rows): (Vec<_>, Vec<_>) = lines.partition(|l| l.starts_with('#'));
    let rows: Vec<Vec<f64>> = rows
        .iter()
        .map(|l| l.split_whitespace().map(|w| w.parse().unwrap()).collect())
        .collect();
    let (last, others) = rows.split_last().unwrap();
    assert!(rows.is_sorted_by(|a, b| (0..3).all(|i| a[i] <= b[i])));
    assert_eq!(last[1], 1.0);
    assert_eq!(last.len(), 3);
    for row in others {
        assert!(
            (row[3] - 1.0 / (1.0 - row[1])).abs() <= row[3] * 1e-2,
            "{row:?}"
        );
    }
    assert_eq!(comments.len(), 3);
    for (comment, begin) in comments
        .iter()
        .zip(["#[Mean    =", "#[Max     =", "#[Buckets ="])
    {
        assert!(
            comment.starts_with(begin) && comment.ends_with(']'),
            "{comment}"
        );
    }
    let total = format!("Total count    = {:12}]", last[2]);
    assert!(comments[1].ends_with(&total), "{text}");
}

#[test]
fn tables_have_the_columns_of_perftest() {
    let place = Place::new("tables");
    let text = place.measured("lat --size 64 --count 2k --rounds 2 --hgrm one.hgrm");
    let header = "#bytes  #iterations  t_min t_max t_typical t_avg t_stdev 99% 99.9% 99.99%";
    let words = |line: &str| {
        line.split_whitespace()
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let at = text.lines().position(|l| words(l) == words(header));
    let row = words(text.lines().nth(at.expect(&text) + 1).unwrap());
    assert_eq!(row[..2], ["64", "2000"]);
    assert!(
        row.iter().all(|cell| cell.parse::<f64>().unwrap() > 0.0),
        "{row:?}"
    );
    assert!(text.contains("regime "), "{text}");
    check_hgrm(&place.read("one.hgrm"));
}

#[test]
fn a_duration_is_kept_about() {
    let place = Place::new("duration");
    for kind in ["lat", "rate"] {
        let begun = Instant::now();
        let report = place.json(&format!("{kind} --size 64 --rounds 2 --duration 800ms"));
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(700), "{kind}: {took:?}");
        let iterations = report["sizes"][0]["iterations"].as_u64().unwrap();
        assert!(iterations > 200, "{kind}: {iterations}");
    }
    // By a schedule, time is a count.
    let report = place.json("lat --size 64 --rounds 2 --duration 400ms --rate 5k");
    assert_eq!(report["sizes"][0]["iterations"], 2000);
}

#[test]
fn rates_and_limits_in_every_form() {
    let place = Place::new("rate");
    let report = place.json("rate --size 64,4K --count 20k --rounds 2 --svg rate.svg");
    assert_eq!(report["kind"], "rate");
    for row in report["sizes"].as_array().unwrap() {
        assert_eq!(row["iterations"], 20_000);
        for figure in [
            "per_second",
            "bytes_per_second",
            "per_line",
            "copies_per_second",
            "over_copies",
        ] {
            check_series(&row["figures"][figure], 2);
        }
        let [messages, bytes] = ["per_second", "bytes_per_second"]
            .map(|n| row["figures"][n]["median"].as_f64().unwrap());
        assert!((bytes / messages / row["bytes"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    }
    has_texts(
        &place.read("rate.svg"),
        &["tbus", "copy limit", "messages a second", "GB/s", "4 Ki"],
    );
    assert!(
        place
            .measured("rate --size 64 --count 20k --rounds 1")
            .contains("copy limit")
    );

    let report = place.json("limit --size 64,1K --rounds 2 --svg limit.svg --hgrm line.hgrm");
    assert_eq!(report["kind"], "limit");
    let count = report["line_times"]["count"].as_u64().unwrap();
    check_times(&report["line_times"], count);
    check_hgrm(&place.read("line.hgrm"));
    has_texts(&place.read("limit.svg"), &["limit: cache line", "copies"]);
    assert!(
        place
            .measured("limit --size 64 --rounds 1")
            .contains("cache line")
    );
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let status = Command::new("kill").args([name, &pid]).status().unwrap();
    assert!(status.success());
}

/// Starts a measurement and stops one of its processes again and again, for `time` at a time and as long in between, until
/// it is done: wherever the part that is timed begins and ends, it is stopped in it. Returns the size's figures.
fn stopped_again_and_again(place: &Place, arguments: &str, worker: bool, time: u64) -> Value {
    let run = format!("{arguments} --size 64 --rounds 1 --keep-all --json");
    let mut child = place.command(&run).stdout(Stdio::piped()).spawn().unwrap();
    wait_for("no worker", || children(child.id()).len() == 1);
    let stopped = match worker {
        true => children(child.id())[0],
        false => child.id(),
    };
    while child.try_wait().unwrap().is_none() {
        for name in ["-STOP", "-CONT"] {
            // It may have ended meanwhile; this process's own child stays until it is waited for.
            let kill = Command::new("kill")
                .args([name, &stopped.to_string()])
                .output();
            kill.unwrap();
            std::thread::sleep(Duration::from_millis(time));
        }
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let mut report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["sizes"][0].take()
}

/// What nine in ten messages took at most, in milliseconds: corrected, raw.
fn p90(row: &Value) -> [f64; 2] {
    ["times", "raw_times"].map(|t| row[t]["percentiles"]["90"].as_f64().unwrap() / 1e6)
}

/// The sender is stopped: what was due meanwhile is sent late. Timed from the sending, it looks as if nothing had
/// happened; timed from when it was due, it does not.
#[test]
fn coordinated_omission_is_corrected() {
    let place = Place::new("omission");
    let run = "lat --rate 5k --duration 4s --svg o.svg";
    let row = stopped_again_and_again(&place, run, false, 400);
    check_times(&row["times"], 20_000);
    check_times(&row["raw_times"], 20_000);
    // Half of the messages wait, up to 400 ms: one in ten over 320. The bounds are for a busy machine.
    let [corrected, raw] = p90(&row);
    assert!((150.0..4000.0).contains(&corrected), "{corrected} ms");
    assert!(raw < 100.0, "{raw} ms");
    let achieved = row["figures"]["per_second"]["median"].as_f64().unwrap();
    assert!((2000.0..5001.0).contains(&achieved), "{achieved}/s");
    has_texts(
        &place.read("o.svg"),
        &["64 B", "64 B, raw", "One-way latency at 5 k messages/s"],
    );
}

/// A receiver that stands still makes the ring full: then the sender waits, too.
#[test]
fn a_full_ring_counts_as_waiting() {
    let place = Place::new("full");
    let run = "lat --capacity 4K --rate 5k --duration 4s";
    let row = stopped_again_and_again(&place, run, true, 400);
    let [corrected, raw] = p90(&row);
    assert!(corrected > 150.0, "{corrected} ms");
    assert!(raw < 100.0, "{raw} ms");
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace()
        .map(|w| w.parse().unwrap())
        .collect()
}

#[test]
fn a_rate_that_cannot_be_reached_is_told() {
    let place = Place::new("absurd");
    let text = place.measured("lat --size 4K --rate 90M --count 20k --rounds 1");
    assert!(text.contains("Give a lower --rate"), "{text}");
}

#[test]
fn two_results_are_compared() {
    let place = Place::new("compare");
    for (name, arguments) in [
        ("a.json", "lat --size 8,64 --count 3k --rounds 3"),
        (
            "b.json",
            "lat --size 64 --count 3k --rounds 3 --capacity 64K",
        ),
        ("rate.json", "rate --size 64 --count 3k --rounds 3"),
        ("other.json", "lat --size 16 --count 3k --rounds 3"),
    ] {
        let report = place.measured(&format!("{arguments} --json"));
        std::fs::write(place.path.join(name), report).unwrap();
    }
    let output = place.run("compare a.json b.json --svg both.svg");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("The ring's capacity differs: A 1048576, B 65536."),
        "{text}"
    );
    assert!(
        text.contains("typical, ns") && text.contains("B ÷ A"),
        "{text}"
    );
    has_texts(
        &place.read("both.svg"),
        &["A 64 B", "B 64 B", "A limit: cache line"],
    );

    let same = place.run("compare a.json a.json --json");
    let same: Value = serde_json::from_slice(&same.stdout).unwrap();
    for line in same["lines"].as_array().unwrap() {
        assert_eq!(line["ratio"], 1.0);
        assert_eq!(line["verdict"], "within_spread");
    }

    let error = place.refused("compare a.json rate.json", 3);
    assert!(error.contains("give two of the same kind"), "{error}");
    let error = place.refused("compare a.json other.json", 3);
    assert!(error.contains("none in common"), "{error}");
}

/// Results that are made up, for what cannot be had by measuring.
#[test]
fn verdicts_and_regimes_are_told() {
    let place = Place::new("verdicts");
    let report = place.json("rate --size 64 --count 3k --rounds 3");
    let made_up = |name: &str, regime: &str, rates: [f64; 3]| {
        let mut report = report.clone();
        report["regime"] = regime.into();
        report["sizes"][0]["figures"]["per_second"]["rounds"] = rates.to_vec().into();
        std::fs::write(place.path.join(name), report.to_string()).unwrap();
    };
    made_up("slow", "near", [0.9e6, 1e6, 1.2e6]);
    made_up("fast", "near", [1.9e6, 2e6, 2.1e6]);
    made_up("about", "near", [1.15e6, 1.3e6, 1.4e6]);
    made_up("far", "far", [1e6, 1.1e6, 1.2e6]);
    let compare = |a: &str, b: &str| {
        let output = place.run(&format!("compare {a} {b} --json"));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["lines"][0]["figure"], "line");
        let line = found["lines"].as_array().unwrap();
        let line = line.iter().find(|l| l["figure"] == "per_second").unwrap();
        (
            line["verdict"].as_str().unwrap().to_string(),
            line["ratio"].as_f64().unwrap(),
        )
    };
    assert_eq!(compare("slow", "fast"), ("better".into(), 2.0));
    assert_eq!(compare("fast", "slow").0, "worse");
    assert_eq!(compare("slow", "about").0, "within_spread");
    let text = String::from_utf8(place.run("compare slow far").stdout).unwrap();
    assert!(
        text.contains("*** THE REGIMES DIFFER: A is near, B is far."),
        "{text}"
    );
    let text = String::from_utf8(place.run("compare slow fast").stdout).unwrap();
    assert!(!text.contains("***"), "{text}");
}

#[test]
fn files_of_another_kind_are_refused() {
    let place = Place::new("garbage");
    let report = place.json("rate --size 64 --count 1k --rounds 1");
    let write = |name: &str, text: String| std::fs::write(place.path.join(name), text).unwrap();
    write("good", report.to_string());
    let newer = {
        let mut report = report.clone();
        report["format_version"] = 2.into();
        report
    };
    let damaged = {
        let mut report = report.clone();
        report["line_times"]["histogram"] = "HISTFAAA".into();
        report
    };
    for (content, wanted) in [
        ("\u{1}\u{2}garbage".into(), "not JSON"),
        ("{\"a\": 1}".into(), "not a result of tbusperf"),
        ("[]".into(), "not a result of tbusperf"),
        (
            "{\"format\": \"tbusperf\", \"format_version\": 1}".into(),
            "missing field",
        ),
        (report.to_string()[..1000].to_string(), "not JSON"),
        (
            newer.to_string(),
            "its format has version 2, this tbusperf reads 1",
        ),
        (damaged.to_string(), "damaged: the histogram is not"),
    ] {
        write("bad", content);
        let error = place.refused("compare good bad", 3);
        assert!(error.contains(wanted) && error.contains("bad"), "{error}");
    }
    let error = place.refused("compare good absent", 7);
    assert!(error.contains("cannot read absent"), "{error}");
}

#[test]
fn senseless_arguments_are_usage_errors_with_a_mend() {
    let place = Place::new("usage");
    for (arguments, wanted) in [
        ("lat --size 1M", "add --capacity 2097152"),
        (
            "lat --size 64 --capacity 100",
            "--capacity: a ring of 100 bytes cannot be made",
        ),
        ("lat --size 64,64", "named twice"),
        ("lat --size 6x4", "give a number of bytes"),
        (
            "lat --size 9999999999999999999999",
            "give a number of bytes",
        ),
        ("lat --size 99999999999", "no ring takes a message"),
        (
            "lat --rate 2000M",
            "--rate: 2000000000 messages/s cannot be scheduled",
        ),
        ("lat --rate 0", "give a number above 0"),
        ("lat --rate -5", "unexpected argument"),
        ("lat --rate nan", "give a number above 0"),
        ("lat --rate 0.5", "give --duration or --count"),
        ("lat --rate 1 --count 1M", "more than a week"),
        ("lat --count 5", "too few for 9 rounds"),
        ("lat --count 1.5", "give a whole number"),
        ("lat --count 5 --duration 1s", "cannot be used with"),
        ("lat --duration 1ms", "less than 1 ms"),
        ("lat --duration 10", "time unit needed"),
        ("lat --rounds 0", "at least one"),
        ("lat --cpus 0,0", "cannot share processor 0"),
        ("lat --cpus 0,9999", "may not run on processor 9999"),
        ("lat --cpus 3", "give two processors, as in 0,1, or none"),
        (
            "lat --size 8,64 --hgrm one.hgrm",
            "write one.hgrm/ to have it made",
        ),
        ("limit --size 0", "cannot be measured"),
        ("rate --rate 5", "unexpected argument"),
        ("compare one.json", "required arguments"),
    ] {
        let error = place.refused(arguments, 2);
        assert!(error.contains(wanted), "{arguments}: {error}");
    }
    assert_eq!(
        place.files(),
        [""; 0],
        "nothing is left of what was refused"
    );
}

/// What cannot be written is found before the time of a measurement is spent; what was there stays.
#[test]
fn unwritable_files_are_found_before_measuring() {
    let place = Place::new("unwritable");
    std::fs::write(place.path.join("plain"), "mine").unwrap();
    let begun = Instant::now();
    for arguments in [
        "lat --duration 1h --svg absent/lat.svg",
        "lat --duration 1h --svg .",
        "lat --duration 1h --svg fresh.svg --hgrm plain/x/",
        "lat --size 8 --duration 1h --svg plain --hgrm absent/one",
        "rate --duration 1h --svg absent/rate.svg",
    ] {
        let error = place.refused(arguments, 7);
        assert!(
            error.contains("nothing was measured"),
            "{arguments}: {error}"
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert_eq!(place.files(), ["plain"]);
    assert_eq!(place.read("plain"), "mine");
}

/// Scratch directories of runs of this process's children.
fn scratch_of(pid: u32) -> bool {
    let name = format!("tbus-perf-{pid}-");
    let bases = [PathBuf::from("/dev/shm"), std::env::temp_dir()];
    bases.iter().any(|base: &PathBuf| {
        let entries = std::fs::read_dir::<&Path>(base).into_iter().flatten();
        entries
            .flatten()
            .any(|e| e.file_name().to_string_lossy().starts_with(&name))
    })
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !there() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_signal_and_a_dead_worker_end_it_with_nothing_left() {
    let place = Place::new("signal");
    let start = || {
        let mut command = place.command("lat --size 64 --duration 1h --rounds 1 --svg new.svg");
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        wait_for("no worker", || children(child.id()).len() == 1);
        wait_for("no scratch", || scratch_of(child.id()));
        // Into the measurement, where both poll.
        std::thread::sleep(Duration::from_millis(500));
        let worker = children(child.id())[0];
        (child, worker)
    };
    for (to_worker, wanted) in [
        (false, "stopped by a signal"),
        (true, "ended by itself: killed by SIGKILL"),
    ] {
        let (child, worker) = start();
        let pid = child.id();
        if to_worker {
            let status = Command::new("kill")
                .args(["-KILL", &worker.to_string()])
                .status();
            assert!(status.unwrap().success());
        } else {
            signal(&child, "-INT");
        }
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(7), "{error}");
        assert!(error.contains(wanted), "{error}");
        assert!(!scratch_of(pid));
        assert_eq!(place.files(), [""; 0]);
        wait_for("the worker lives", || {
            !Path::new(&format!("/proc/{worker}")).exists()
        });
    }
}

#[test]
fn two_hosts_are_measured_beside_bare_tcp() {
    let place = Place::new("remote");
    for (arguments, channel) in [
        ("lat --remote --embedded", "embedded relays"),
        ("lat --remote", "two tbusd"),
        ("rate --remote --embedded", "embedded relays"),
        ("rate --remote --transport tcp", "two tbusd"),
        (
            "lat --remote --embedded --security encrypt",
            "embedded relays, security encrypt",
        ),
        (
            "rate --remote --security authenticate",
            "two tbusd, security authenticate",
        ),
    ] {
        let result = place.json(&format!("{arguments} --size 64 --count 50 --rounds 1"));
        let named = result["settings"]["channel"].as_str().unwrap();
        assert!(named.starts_with("remote, tcp"), "{named}");
        assert!(named.contains(channel), "{arguments}: {named}");
        let row = &result["sizes"][0];
        assert!(row["iterations"].as_u64() >= Some(50), "{row:#}");
        let kind = arguments.split(' ').next().unwrap();
        let figure = if kind == "lat" {
            "typical"
        } else {
            "per_second"
        };
        let median = row["figures"][figure]["median"].as_f64();
        assert!(median > Some(0.0), "{row:#}");
    }
    for arguments in [
        "lat --embedded",
        "rate --transport tcp",
        "lat --security none",
    ] {
        assert!(place.refused(arguments, 2).contains("--remote"));
    }
    let error = place.refused("lat --remote --transport pigeon", 2);
    assert!(error.contains("tcp"), "{error}");
    // Where there is RDMA it is measured, elsewhere it is said why not.
    for transport in ["verbs", "ucx"] {
        let output = place.run(&format!(
            "lat --remote --transport {transport} --size 64 --count 50 --rounds 1"
        ));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() || output.status.code() == Some(7),
            "{error}"
        );
        assert!(
            output.status.success() || error.contains("unavailable: "),
            "{error}"
        );
    }
}

#[test]
fn the_help_teaches() {
    let place = Place::new("help");
    for (arguments, wanted) in [
        ("--help", "Exit status:"),
        ("lat --help", "corrected for coordinated omission"),
        ("rate --help", "Examples:"),
        ("limit --help", "near"),
        ("compare --help", "Examples:"),
    ] {
        let output = place.run(arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(wanted), "{text}");
    }
}
