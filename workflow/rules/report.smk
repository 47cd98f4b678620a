# Tables, figures and the front page; those with a caption also appear in `snakemake --report`.


rule report:
    input:
        LAYOUT.scores,
    output:
        [shown(path) for path in REPORT_FILES],
    log:
        LOGS / "report" / "report.log",
    benchmark:
        LOGS / "report" / "report.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=grows(2000),
        runtime=grows(30),
    params:
        tables=EXPERIMENT.fingerprint(*EXPERIMENT.tables.values()),
    shell:
        "synopsis --log {log:q} report {resources.config}"


# Not made by itself: name it, as in `snakemake --cores 1 results/demo/paper/manifest.json`.
rule example_paper:
    input:
        REPORT_FILES,
        paper=Path(workflow.basedir) / "docs" / "paper" / "example.tex",
    output:
        LAYOUT.root / "paper" / "manifest.json",
    log:
        LOGS / "report" / "paper.log",
    benchmark:
        LOGS / "report" / "paper.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        results=LAYOUT.root,
        folder=LAYOUT.root / "paper",
    shell:
        "synopsis --log {log:q} export {params.results:q} --to {params.folder:q} --paper {input.paper:q}"
