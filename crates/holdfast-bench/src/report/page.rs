//! One page of HTML that needs nothing beside it.

use maud::{DOCTYPE, PreEscaped, html};

use super::{Report, plots};
use crate::BenchError;
use crate::plan::Shows;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .3em .8em; text-align: right; border-bottom: 1px solid #ddd; white-space: pre-line }
th:first-child, td:first-child { text-align: left }
td { font-variant-numeric: tabular-nums }
svg { max-width: 100%; height: auto }
";

pub(super) fn of(report: &Report) -> Result<String, BenchError> {
    let mut plots = Vec::new();
    for table in &report.tables {
        let mut drawn = vec![plots::bars(table)?];
        if table.shows == Shows::Latency {
            for line in &table.lines {
                drawn.push(plots::curves(line)?);
            }
        }
        plots.push(drawn);
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "What protection costs" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "What protection costs" }
                p {
                    "The same storage with and without checksums, measured in turns. A ratio is to \""
                    (crate::Mode::Plain.name()) "\": of rates more is better, of latencies less. The bars are \
                     medians, the thin lines reach from the least to the most."
                }
                table {
                    @for (name, value) in report.circumstances() {
                        tr { th { (name) } td style="text-align: left" { (value) } }
                    }
                }
                @for (table, drawn) in report.tables.iter().zip(plots) {
                    h2 { (table.title) }
                    table {
                        thead { tr { @for header in table.headers() { th { (header) } } } }
                        tbody {
                            @for line in &table.lines {
                                tr { @for cell in table.columns(line) { td { (cell) } } }
                            }
                        }
                    }
                    @for plot in drawn { (PreEscaped(plot)) }
                }
            }
        }
    };
    Ok(page.into_string())
}

#[cfg(test)]
mod tests {
    use crate::report::tests::report;

    #[test]
    fn a_page_has_tables_and_plots_and_asks_for_nothing() {
        let page = super::of(&report()).unwrap();
        // The circumstances and three tables; bars of each, and a curve of each line of the latencies.
        assert_eq!((page.matches("<table").count(), page.matches("<svg").count()), (4, 5));
        assert!(page.contains("a &lt;title&gt;"), "what is text stays text");
        assert!(!page.contains("src=") && !page.contains("href="));
    }
}
