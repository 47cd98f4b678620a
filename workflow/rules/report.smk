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
    shell:
        "synopsis --log {log:q} report {resources.config}"
