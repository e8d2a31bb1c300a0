//! Plots, as SVG.

use std::fmt::Display;

use plotters::prelude::*;

use super::{Found, Line};
use crate::BenchError;
use crate::plan::Mode;

const SIZE: (u32, u32) = (960, 360);

/// Returns the color of a mode, which those who see no red or green tell apart, too (Okabe and Ito).
const fn color(mode: Mode) -> RGBColor {
    match mode {
        Mode::Plain => RGBColor(0x99, 0x99, 0x99),
        Mode::ZeroCopy => RGBColor(0x56, 0xb4, 0xe9),
        Mode::Bounce => RGBColor(0xe6, 0x9f, 0x00),
        Mode::Lazy => RGBColor(0x00, 0x9e, 0x73),
    }
}

fn drawing(error: impl Display) -> BenchError {
    BenchError::Draw(error.to_string())
}

/// Returns the label of a place on an axis.
fn short(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[expect(clippy::cast_precision_loss, reason = "there are few")]
const fn place(index: usize) -> f64 {
    index as f64
}

/// Draws a bar of each mode for each line, and from the least to the most that was measured.
pub(super) fn bars(table: &Found) -> Result<String, BenchError> {
    let mut svg = String::new();
    let modes = table.modes();
    let of = |line: &Line, mode| line.cell(mode).map(|cell| table.shows.of(cell));
    let all =
        || table.lines.iter().flat_map(|line| modes.iter().filter_map(|&mode| of(line, mode)));
    let most = all().map(|spread| spread.max).fold(1e-3, f64::max);
    let least = all().map(|spread| spread.min).fold(most, f64::min).max(1e-3);
    // Blocks of 4k and of 1M are far apart. The legend has its place above.
    let floor = 10_f64.powf(least.log10().floor());
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(72)
            .build_cartesian_2d(0.0..place(table.lines.len()), (floor..most * 6.0).log_scale())
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .max_light_lines(0)
            .y_label_formatter(&|value: &f64| short(*value))
            .y_desc(table.shows.unit())
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(drawing)?;
        let width = 0.8 / place(modes.len());
        for (index, &mode) in modes.iter().enumerate() {
            let spreads = table.lines.iter().enumerate().filter_map(|(line, of_line)| {
                let left = place(line) + 0.1 + width * place(index);
                of(of_line, mode).map(|spread| (left, spread))
            });
            let spreads: Vec<_> = spreads.collect();
            let bars = spreads.iter().map(|(left, spread)| {
                Rectangle::new(
                    [(*left, floor), (left + width * 0.92, spread.median)],
                    color(mode).filled(),
                )
            });
            let series = chart.draw_series(bars).map_err(drawing)?;
            series.label(mode.name()).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 12, y + 5)], color(mode).filled())
            });
            let reaches = spreads.iter().map(|(left, spread)| {
                let middle = left + width * 0.46;
                PathElement::new(vec![(middle, spread.min), (middle, spread.max)], BLACK)
            });
            chart.draw_series(reaches).map_err(drawing)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .label_font(("sans-serif", 13))
            .draw()
            .map_err(drawing)?;
        for (index, line) in table.lines.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(place(index) + 0.5, floor));
            let style = ("sans-serif", 13).into_text_style(&area).pos(
                plotters::style::text_anchor::Pos::new(
                    plotters::style::text_anchor::HPos::Center,
                    plotters::style::text_anchor::VPos::Top,
                ),
            );
            area.draw_text(&line.name, &style, (x, y + 8)).map_err(drawing)?;
        }
        area.present().map_err(drawing)?;
    }
    Ok(svg)
}

/// Draws the latency below which so many per cent of the requests were.
pub(super) fn curves(line: &Line) -> Result<String, BenchError> {
    let mut svg = String::new();
    let points = line.cells.iter().flat_map(|(_, cell)| &cell.curve).map(|&(_, micros)| micros);
    let (least, most) = points
        .fold((f64::MAX, 1e-3_f64), |(least, most), micros| (least.min(micros), most.max(micros)));
    let least = least.clamp(1e-3, most);
    {
        let area = SVGBackend::with_string(&mut svg, (480, 300)).into_drawing_area();
        area.fill(&WHITE).map_err(drawing)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .caption(&line.name, ("sans-serif", 15))
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d((least * 0.9..most * 1.1).log_scale(), 0.0..100.0)
            .map_err(drawing)?;
        chart
            .configure_mesh()
            .max_light_lines(0)
            .x_labels(4)
            .x_label_formatter(&|value: &f64| short(*value))
            .y_label_formatter(&|value: &f64| short(*value))
            .x_desc("us")
            .y_desc("% of requests")
            .label_style(("sans-serif", 12))
            .draw()
            .map_err(drawing)?;
        for (mode, cell) in &line.cells {
            let curve = cell.curve.iter().map(|&(percent, micros)| (micros, percent));
            let series = LineSeries::new(curve, color(*mode).stroke_width(2));
            chart.draw_series(series).map_err(drawing)?.label(mode.name()).legend({
                let color = color(*mode);
                move |(x, y)| PathElement::new(vec![(x, y), (x + 12, y)], color.stroke_width(2))
            });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.85))
            .label_font(("sans-serif", 12))
            .draw()
            .map_err(drawing)?;
        area.present().map_err(drawing)?;
    }
    Ok(svg)
}
