# Greedy outputs for a validation split, and their ROUGE.


rule generate:
    input:
        model=lambda w: LAYOUT.model(w.run),
        instructions=lambda w: LAYOUT.instructions(EXPERIMENT.generate.instructions),
    output:
        outputs=RESULTS / "generations" / "{run}" / "{split}.csv",
        scores=RESULTS / "generations" / "{run}" / "{split}.json",
    log:
        LOGS / "generate" / "{run}-{split}.log",
    benchmark:
        LOGS / "generate" / "{run}-{split}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=6000,
        runtime=240,
    params:
        facts=lambda w: plan.generate_facts(EXPERIMENT, w.run, w.split),
    shell:
        "synopsis --log {log:q} generate {resources.config} {wildcards.run:q} {wildcards.split:q}"
