use sockcr_scenarios::Scenario;
pub const ALL: &[Scenario] = &[];
