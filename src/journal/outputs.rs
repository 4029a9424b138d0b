mod frame;
/// Placeholder.
pub struct FileOutputs;
