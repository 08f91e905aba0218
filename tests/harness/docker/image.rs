//! The image of the test containers: one static binary, made in memory, no registry.

use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::TryStreamExt;

use super::engine::Engine;
use crate::programs;

impl Engine {
    /// Makes the image `greeter:latest` (and `greeter:v1`, `greeter:v2`, which differ in `GREETER_VERSION`).
    pub fn import_greeter(&self) {
        self.import_greeter_as("greeter");
    }

    /// The same under another name, beside the images of somebody else's Docker.
    pub fn import_greeter_as(&self, repository: &str) {
        let path = programs::built("greeter").unwrap_or_else(|err| panic!("{err}"));
        let binary = std::fs::read(&path).unwrap_or_else(|err| panic!("read {}: {err}", path.display()));
        let archive = archive(&binary);
        for (tag, version) in [("latest", "v1"), ("v1", "v1"), ("v2", "v2")] {
            let changes = ["ENTRYPOINT [\"/greeter\"]".to_owned(), format!("ENV GREETER_VERSION={version}")];
            let options =
                CreateImageOptionsBuilder::new().from_src("-").repo(repository).tag(tag).changes(changes.to_vec());
            let body = bollard::body_full(archive.clone().into());
            let import = self.api().create_image(Some(options.build()), Some(body), None);
            self.wait("import the greeter's image", import.try_collect::<Vec<_>>());
        }
    }
}

fn archive(binary: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_size(binary.len() as u64);
    header.set_mode(0o755);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, "greeter", binary).expect("writing to memory cannot fail");
    archive.into_inner().expect("writing to memory cannot fail")
}
