//! The manifests in `deploy/examples` are what users start from: the agent must read them without complaint.

use std::{path::Path, time::Duration};

use sluice::cluster::{Cluster, builder, manifests};

#[tokio::test]
async fn the_examples_are_read_without_complaint() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/shop");
    let feed = manifests::open(&directory).unwrap();
    let cluster = Cluster::start(feed, builder::Options::default());
    let snapshot = tokio::time::timeout(Duration::from_secs(30), cluster.synced()).await.unwrap().unwrap();
    let status = cluster.status();
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    let orders = &snapshot.destinations[&"10.96.7.3:8080".parse().unwrap()].service;
    assert_eq!(orders.to_string(), "orders.shop:8080");
    assert_eq!((orders.baseline.len(), orders.lanes.len()), (1, 1));
    assert!(snapshot.pods.values().all(|pod| pod.capture));
}

/// The YAML of the recipes, but for those parts that are marked as fragments.
fn recipes() -> Vec<String> {
    let text = include_str!("../../deploy/RECIPES.md");
    let blocks = text.split("```yaml\n").skip(1).filter_map(|block| block.split("```").next());
    blocks.map(unindented).collect()
}

/// Blocks in lists are indented.
fn unindented(block: &str) -> String {
    let indent = block.len() - block.trim_start().len();
    block.lines().map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect()
}

#[tokio::test]
async fn the_recipes_are_read_without_complaint() {
    let directory = tempfile::tempdir().unwrap();
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  annotations:\n    sluice.dev/capture: enabled\n";
    std::fs::write(directory.path().join("namespace.yaml"), namespace).unwrap();
    let recipes = recipes();
    assert!(recipes.len() >= 6, "{} recipes", recipes.len());
    for (index, recipe) in recipes.iter().enumerate() {
        std::fs::write(directory.path().join(format!("recipe-{index}.yaml")), recipe).unwrap();
    }
    for (index, service) in ["gateway", "orders", "pricing", "stock"].iter().enumerate() {
        let object = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {service}\n  namespace: shop\nspec:\n  clusterIP: 10.96.0.{}\n  clusterIPs: [10.96.0.{}]\n  ports:\n  - port: 80\n",
            index + 1,
            index + 1
        );
        std::fs::write(directory.path().join(format!("{service}.yaml")), object).unwrap();
    }
    let cluster = Cluster::start(manifests::open(directory.path()).unwrap(), builder::Options::default());
    tokio::time::timeout(Duration::from_secs(30), cluster.synced()).await.unwrap().unwrap();
    let status = cluster.status();
    assert!(status.problems.is_empty(), "{:#?}", status.problems);
}
