//! Which image holds what: the images that critest names, and our own.
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::debian::Debian;
use super::layer::{Compression, Layer, Tree};
use super::store::{Family, Form, ImageConfig, RegistryStore};
use crate::command::{output, run};
use crate::paths;

/// Raise it when the images must be made again.
pub const RECIPE: u32 = 2;

const HOST_NETWORK_PORT: u16 = 12003;
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\n\
    operator:x:37:37:Operator:/var:/bin/false\n\
    nobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str =
    "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\noperator:x:37:\nusers:x:100:\nnogroup:x:65534:\n";

/// Makes every image below `dir`: `store/` is the storage folder of the registry. Nothing is done when the folder is
/// complete already.
///
/// # Errors
/// When packages cannot be fetched, or the C compiler or the folder refuses.
pub fn build(dir: &Path) -> Result<()> {
    let stamp = dir.join("recipe");
    if fs::read_to_string(&stamp).is_ok_and(|text| text == RECIPE.to_string()) {
        return Ok(());
    }
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    let debian = Debian::unpack(&dir.join("debian"))?;
    let store = RegistryStore::new(&dir.join("store"));
    Catalog::new(&debian, dir, store)?.write_all()?;
    fs::remove_dir_all(dir.join("debian"))?;
    fs::write(stamp, RECIPE.to_string())?;
    Ok(())
}

/// The architecture of this machine in the words of an image index.
#[must_use]
pub fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn other_architecture() -> &'static str {
    if architecture() == "amd64" { "arm64" } else { "amd64" }
}

/// The layers that images share, and where they go.
struct Catalog {
    store: RegistryStore,
    busybox: Tree,
    tools: Layer,
    nginx: Tree,
    pause: Vec<u8>,
    nonewprivs: Vec<u8>,
}

impl Catalog {
    fn new(debian: &Debian, dir: &Path, store: RegistryStore) -> Result<Self> {
        Ok(Self {
            store,
            busybox: busybox(debian, dir)?,
            tools: tools(debian)?.layer(Compression::OciZstd)?,
            nginx: Tree::default().programs(debian.program("/usr/sbin/nginx")?),
            pause: compile(dir, "pause")?,
            nonewprivs: compile(dir, "nonewprivs")?,
        })
    }

    fn write_all(&self) -> Result<()> {
        self.busybox_images()?;
        self.web_servers()?;
        self.static_programs()?;
        self.users()?;
        self.markers()
    }

    fn shell() -> ImageConfig {
        ImageConfig { cmd: vec!["sh".into()], ..ImageConfig::default() }
    }

    /// Busybox with the tools of Debian in a second layer, as critest wants it.
    fn full(&self, more: Option<&Tree>) -> Result<Vec<Layer>> {
        let mut layers = vec![self.busybox.layer(Compression::OciGzip)?, self.tools.clone()];
        if let Some(tree) = more {
            layers.push(tree.layer(Compression::OciGzip)?);
        }
        Ok(layers)
    }

    fn busybox_images(&self) -> Result<()> {
        self.put(("e2e-test-images/busybox", &["1.29-2"]), Family::Oci, &Self::shell(), &self.full(None)?)?;
        let plain = [self.busybox.layer(Compression::DockerGzip)?];
        self.put(("library/busybox", &["latest", "1", "stable"]), Family::Docker, &Self::shell(), &plain)?;
        for tag in ["1", "1-glibc", "1-musl", "1-uclibc", "1.35.0-glibc"] {
            let marker = Tree::default().file("marker", tag, 0o644).layer(Compression::OciPlain)?;
            let layers = [self.busybox.layer(Compression::OciZstd)?, marker];
            self.put(("docker/library/busybox", &[tag]), Family::Oci, &Self::shell(), &layers)?;
        }
        Ok(())
    }

    fn web_servers(&self) -> Result<()> {
        let nginx = |page: &str, port: u16| {
            let conf = include_str!("../../images/nginx.conf").replace("PORT", &port.to_string());
            self.nginx
                .clone()
                .file("etc/nginx/nginx.conf", conf, 0o644)
                .file("usr/share/nginx/html/index.html", page, 0o644)
                .dir("var/log/nginx", 0o755)
                .dir("var/lib/nginx", 0o755)
        };
        let welcome =
            "<html><head><title>Welcome to nginx!</title></head><body>Welcome to nginx!</body></html>\n";
        let foreground = ImageConfig {
            entrypoint: ["nginx", "-g", "daemon off;"].map(str::to_owned).to_vec(),
            stop_signal: "SIGTERM".into(),
            ..ImageConfig::default()
        };
        let layers = self.full(Some(&nginx(welcome, 80)))?;
        self.put(("e2e-test-images/nginx", &["1.14-2"]), Family::Docker, &foreground, &layers)?;
        self.put(("library/nginx", &["latest"]), Family::Docker, &foreground, &layers)?;
        let name = format!("k8s-staging-cri-tools/hostnet-nginx-{}", architecture());
        let layers = self.full(Some(&nginx(welcome, HOST_NETWORK_PORT)))?;
        self.put((&name, &["latest"]), Family::Oci, &foreground, &layers)?;

        let script = "#!/bin/sh\necho 'httpd: starting'\nexec nginx -g 'daemon off;'\n";
        let httpd = nginx("<html><body><h1>It works!</h1></body></html>\n", 80).file(
            "usr/bin/httpd-foreground",
            script,
            0o755,
        );
        let config = ImageConfig { cmd: vec!["httpd-foreground".into()], ..ImageConfig::default() };
        self.put(("e2e-test-images/httpd", &["2.4.39-4"]), Family::Oci, &config, &self.full(Some(&httpd))?)
    }

    fn static_programs(&self) -> Result<()> {
        let nnp = Tree::default().file("nnp", self.nonewprivs.clone(), 0o4755).dir("tmp", 0o1777);
        let config = ImageConfig { entrypoint: vec!["/nnp".into()], ..ImageConfig::default() };
        let layers = [nnp.layer(Compression::DockerGzip)?];
        self.put(("e2e-test-images/nonewprivs", &["1.3"]), Family::Docker, &config, &layers)?;

        let pause = Tree::default().file("pause", self.pause.clone(), 0o755);
        let config = ImageConfig {
            entrypoint: vec!["/pause".into()],
            user: "65535:65535".into(),
            ..ImageConfig::default()
        };
        let tags = ["3.6", "3.7", "3.8", "3.9", "3.10", "3.10.1", "3.10.2"];
        self.put(("pause", &tags), Family::Docker, &config, &[pause.layer(Compression::DockerGzip)?])
    }

    fn users(&self) -> Result<()> {
        for (name, user) in [
            ("test-image-user-uid", "1002"),
            ("test-image-user-username", "www-data"),
            ("test-image-user-uid-group", "1003:users"),
            ("test-image-user-username-group", "www-data:100"),
        ] {
            let config = ImageConfig { user: user.into(), ..Self::shell() };
            self.put(
                (&format!("k8s-staging-cri-tools/{name}"), &["latest"]),
                Family::Oci,
                &config,
                &self.full(None)?,
            )?;
        }
        let users = Tree::default()
            .file(
                "etc/passwd",
                format!("{PASSWD}default-user:x:1000:1000::/home/default-user:/bin/sh\n"),
                0o644,
            )
            .file(
                "etc/group",
                format!("{GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"),
                0o644,
            );
        let config = ImageConfig { user: "1000".into(), ..Self::shell() };
        let name = "k8s-staging-cri-tools/test-image-predefined-group";
        self.put((name, &["latest"]), Family::Oci, &config, &self.full(Some(&users))?)
    }

    /// Images that differ from each other by one file.
    fn markers(&self) -> Result<()> {
        let images: [(&str, &str, &[&str]); 9] = [
            ("test-image-latest", "latest", &["latest"]),
            ("test-image-digest", "digest", &["latest"]),
            ("test-image-1", "1", &["latest"]),
            ("test-image-2", "2", &["latest"]),
            ("test-image-3", "3", &["latest"]),
            ("test-image-tags", "tags", &["1", "2", "3"]),
            ("test-image-tag", "tag-test", &["test"]),
            ("test-image-tag", "tag-all", &["all"]),
            ("test-image-whiteout", "whiteout", &["latest"]),
        ];
        for (name, marker, tags) in images {
            let tree = Tree::default().file("marker", marker, 0o644);
            let mut layers = self.full(Some(&tree))?;
            if marker == "whiteout" {
                let hide = Tree::default().file(".wh.marker", "", 0o644).file("etc/.wh..wh..opq", "", 0o644);
                layers.push(hide.file("etc/only", "here\n", 0o644).layer(Compression::OciGzip)?);
            }
            self.put((&format!("k8s-staging-cri-tools/{name}"), tags), Family::Oci, &Self::shell(), &layers)?;
        }
        Ok(())
    }

    /// Writes the image for this machine, one for the other architecture that cannot run, and the index over both.
    fn put(
        &self,
        (repository, tags): (&str, &[&str]),
        family: Family,
        config: &ImageConfig,
        layers: &[Layer],
    ) -> Result<()> {
        let ours = self.store.put_image(repository, Form { family, arch: architecture() }, config, layers)?;
        let wrong = Tree::default().file("wrong-architecture", other_architecture(), 0o644);
        let wrong = [wrong.layer(if family == Family::Docker {
            Compression::DockerGzip
        } else {
            Compression::OciGzip
        })?];
        let theirs =
            self.store.put_image(repository, Form { family, arch: other_architecture() }, config, &wrong)?;
        // The other one comes first, so that taking the first entry is found out.
        let entries = [(other_architecture(), theirs), (architecture(), ours)];
        let index = self.store.put_index(repository, family, &entries)?;
        tags.iter().try_for_each(|tag| self.store.tag(repository, tag, &index.digest))
    }
}

/// Debian's static busybox with a link per applet, and the folders and accounts that programs expect.
fn busybox(debian: &Debian, dir: &Path) -> Result<Tree> {
    let program = debian.read("/bin/busybox").or_else(|_| debian.read("/usr/bin/busybox"))?;
    let on_disk = dir.join("busybox");
    fs::write(&on_disk, &program)?;
    run(Command::new("chmod").arg("755").arg(&on_disk))?;
    let applets = output(Command::new(&on_disk).arg("--list"))?;
    let mut tree = Tree::default()
        .file("bin/busybox", program, 0o755)
        .file("etc/passwd", PASSWD, 0o644)
        .file("etc/group", GROUP, 0o644)
        .file("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n", 0o644)
        .dir("tmp", 0o1777)
        .dir("root", 0o700)
        .dir("home", 0o755)
        .dir("usr/sbin", 0o755)
        .dir("var/run", 0o755)
        .dir("var/www", 0o755);
    for applet in applets.lines().filter(|name| *name != "busybox") {
        // Hard links, as in the images that specs were written for: masking one applet leaves the others.
        tree = tree.same(&format!("bin/{applet}"), "bin/busybox");
    }
    Ok(tree)
}

/// A conformance spec compares the shell's error text with that of busybox 1.29, whose shell ran programs and printed no
/// line numbers. Debian's busybox runs its own applets instead of the files, so that the shell is Debian's dash, with the
/// line number taken out of its format string.
fn without_line_numbers(mut program: Vec<u8>) -> Result<Vec<u8>> {
    const FORMAT: &[u8] = b"%s: %d: \0";
    const NUMBER_AT: usize = 4;
    let found: Vec<usize> =
        program.windows(FORMAT.len()).enumerate().filter(|(_, w)| *w == FORMAT).map(|(at, _)| at).collect();
    ensure!(found.len() == 1, "dash holds its error format {} times, not once", found.len());
    program[found[0] + NUMBER_AT] = 0;
    Ok(program)
}

/// What specs call and Debian's busybox lacks.
fn tools(debian: &Debian) -> Result<Tree> {
    let tree = Tree::default().programs(debian.program("/usr/bin/pgrep")?);
    let tree = tree.programs(debian.program("/usr/bin/ipcs")?);
    let dash = debian.read("/bin/dash").or_else(|_| debian.read("/usr/bin/dash"))?;
    Ok(tree.file("bin/sh", without_line_numbers(dash)?, 0o755))
}

/// A static program from `images/<name>.c`.
fn compile(dir: &Path, name: &str) -> Result<Vec<u8>> {
    let target = dir.join(name);
    let source = paths::crate_dir().join("images").join(format!("{name}.c"));
    run(Command::new("cc").args(["-O2", "-static", "-s", "-o"]).arg(&target).arg(&source))?;
    fs::read(&target).with_context(|| format!("read {}", target.display()))
}
