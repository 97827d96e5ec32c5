//! Pictures as SVG: panels of curves side by side, with one legend. What is on them, [`super::pictures`] says.

use super::Result;
use plotters::coord::ranged1d::{
    KeyPointHint, KeyPointWeight, NoDefaultFormatting, ValueFormatter,
};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const FONT: &str = "sans-serif";
const TEXT: RGBColor = RGBColor(0x22, 0x22, 0x22);
const QUIET: RGBColor = RGBColor(0x66, 0x66, 0x66);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
/// What limits are drawn in.
pub const LIMIT: RGBColor = RGBColor(0x77, 0x77, 0x77);
/// Colours that people with colour-blindness tell apart (Okabe and Ito, "Color Universal Design", 2008).
const DISTINCT: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
];
/// For more than those: points of the viridis scale, whose lightness alone orders them.
const SCALE: [RGBColor; 5] = [
    RGBColor(0x44, 0x01, 0x54),
    RGBColor(0x3b, 0x52, 0x8b),
    RGBColor(0x21, 0x91, 0x8c),
    RGBColor(0x5e, 0xc9, 0x62),
    RGBColor(0xe0, 0xd0, 0x20),
];

/// The colour of one of `count` curves.
pub fn colour(index: usize, count: usize) -> RGBColor {
    if count <= DISTINCT.len() {
        return DISTINCT[index];
    }
    let at = index as f64 / (count - 1) as f64 * (SCALE.len() - 1) as f64;
    let below = (at as usize).min(SCALE.len() - 2);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * at.fract()) as u8;
    let (a, b) = (SCALE[below], SCALE[below + 1]);
    match at.fract() {
        0.0 => SCALE[at as usize],
        _ => RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2)),
    }
}

/// A picture.
#[derive(Debug)]
pub struct Picture {
    /// What it shows.
    pub title: String,
    /// On what, and how it was measured; a line each.
    pub subtitle: Vec<String>,
    /// Side by side.
    pub panels: Vec<Panel>,
}

/// Curves between two axes.
#[derive(Debug)]
pub struct Panel {
    /// The horizontal one.
    pub x: Axis,
    /// The vertical one.
    pub y: Axis,
    /// Later ones lie above.
    pub curves: Vec<Curve>,
}

/// An axis; a logarithmic one is one of logarithms with labels of numbers.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What, and in which unit.
    pub title: String,
    /// Its ends.
    pub range: [f64; 2],
    /// Where a label stands, and which.
    pub ticks: Vec<(f64, String)>,
}

/// A line, whose name stands in the legend once, however many panels have it.
#[derive(Clone, Debug)]
pub struct Curve {
    /// For the legend.
    pub name: String,
    /// Of all of it.
    pub colour: RGBColor,
    /// Whether it is a dashed one.
    pub dashed: bool,
    /// Where it goes.
    pub points: Vec<(f64, f64)>,
    /// Vertical spreads, which come with dots: position, low, high.
    pub spreads: Vec<(f64, f64, f64)>,
}

const MARGIN: i32 = 20;
const LEGEND_LINE: i32 = 24;

/// Draws it.
pub fn draw(picture: &Picture) -> Result<String> {
    let mut names: Vec<&Curve> = Vec::new();
    for curve in picture.panels.iter().flat_map(|p| &p.curves) {
        if !names.iter().any(|c| c.name == curve.name) {
            names.push(curve);
        }
    }
    // There is no font here to measure with; most letters are narrower than this.
    let longest = names.iter().map(|c| c.name.chars().count()).max();
    let legend = 60 + 8 * longest.unwrap_or(0) as i32;
    let panel = if picture.panels.len() == 1 { 760 } else { 500 };
    let head = 54 + 20 * picture.subtitle.len() as i32;
    let height = (head + 440).max(head + 40 + LEGEND_LINE * names.len() as i32);
    let width = panel * picture.panels.len() as i32 + legend;
    let mut svg = String::new();
    {
        let root =
            SVGBackend::with_string(&mut svg, (width as u32, height as u32)).into_drawing_area();
        root.fill(&WHITE)?;
        root.draw(&Text::new(
            picture.title.clone(),
            (MARGIN, MARGIN),
            (FONT, 25).into_font().style(FontStyle::Bold).color(&TEXT),
        ))?;
        for (index, line) in picture.subtitle.iter().enumerate() {
            let at = (MARGIN, MARGIN + 32 + 20 * index as i32);
            root.draw(&Text::new(
                line.clone(),
                at,
                (FONT, 16).into_font().color(&QUIET),
            ))?;
        }
        let (_, below) = root.split_vertically(head);
        let (left, right) = below.split_horizontally(width - legend);
        let areas = left.split_evenly((1, picture.panels.len()));
        for (area, panel) in areas.iter().zip(&picture.panels) {
            draw_panel(area, panel)?;
        }
        for (index, curve) in names.iter().enumerate() {
            draw_legend(&right, curve, 20 + LEGEND_LINE * index as i32)?;
        }
        root.present()?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Labels where the axis says, and nowhere else.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let [from, to] = self.range;
        let share = (value - from) / (to - from);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Once for the lines with labels, and once for those without, of which there are none.
        match hint.weight() {
            KeyPointWeight::Bold => self.ticks.iter().map(|tick| tick.0).collect(),
            KeyPointWeight::Any => Vec::new(),
        }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range[0]..self.range[1]
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let tick = self.ticks.iter().find(|(at, _)| at == value);
        tick.map(|(_, label)| label.clone()).unwrap_or_default()
    }
}

fn draw_panel(area: &Area<'_>, panel: &Panel) -> Result<()> {
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_left(MARGIN)
        .x_label_area_size(52)
        .y_label_area_size(76)
        .build_cartesian_2d(panel.x.clone(), panel.y.clone())?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .axis_style(QUIET)
        .label_style((FONT, 16).into_font().color(&TEXT))
        .axis_desc_style((FONT, 17).into_font().color(&TEXT))
        .x_desc(panel.x.title.as_str())
        .y_desc(panel.y.title.as_str())
        .draw()?;
    for curve in &panel.curves {
        let style = curve.colour.stroke_width(2);
        if curve.dashed {
            let points = curve.points.iter().copied();
            chart.draw_series(DashedLineSeries::new(points, 6, 4, style))?;
        } else {
            chart.draw_series(LineSeries::new(curve.points.iter().copied(), style))?;
        }
        chart.draw_series(
            curve
                .spreads
                .iter()
                .map(|(at, low, high)| PathElement::new([(*at, *low), (*at, *high)], style)),
        )?;
        if !curve.spreads.is_empty() {
            let dot = |point: &(f64, f64)| Circle::new(*point, 4, curve.colour.filled());
            chart.draw_series(curve.points.iter().map(dot))?;
        }
    }
    Ok(())
}

fn draw_legend(area: &Area<'_>, curve: &Curve, y: i32) -> Result<()> {
    let dash = if curve.dashed { 7 } else { 28 };
    for x in (0..28).step_by(dash as usize + if curve.dashed { 4 } else { 0 }) {
        let ends = [(x, y), ((x + dash).min(28), y)];
        area.draw(&PathElement::new(ends, curve.colour.stroke_width(3)))?;
    }
    let style = (FONT, 16).into_font().color(&TEXT);
    let style = style.pos(Pos::new(HPos::Left, VPos::Center));
    area.draw(&Text::new(curve.name.clone(), (36, y), style))?;
    Ok(())
}
