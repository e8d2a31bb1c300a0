//! Tables for a terminal.

use comfy_table::{CellAlignment, Table, presets};

use super::Report;

pub(super) fn of(report: &Report) -> String {
    let mut lines: Vec<String> = report
        .circumstances()
        .into_iter()
        .map(|(name, value)| format!("{name:9} {value}"))
        .collect();
    for found in &report.tables {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_header(found.headers());
        for line in &found.lines {
            table.add_row(found.columns(line));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        lines.extend([String::new(), table.to_string()]);
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use crate::report::tests::report;

    #[test]
    fn every_line_of_every_table_is_there() {
        let text = super::of(&report());
        assert_eq!(text.matches("read 64k").count(), 3, "{text}");
        assert!(text.contains("guard crc64") && text.contains("1000 (20/30)"), "{text}");
    }
}
