# Everything that comes from outside is fetched, converted and tokenised here; later stages never use the network.


rule prepare_model:
    output:
        directory(RESULTS / "models" / "{model}"),
    log:
        LOGS / "prepare" / "model-{model}.log",
    benchmark:
        LOGS / "prepare" / "model-{model}.tsv"
    wildcard_constraints:
        model=one_of(LOADED),
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=8000,
        runtime=60,
    params:
        facts=lambda w: plan.prepare_facts(EXPERIMENT, "model", w.model),
    shell:
        "synopsis --log {log:q} prepare {resources.config} model {wildcards.model:q}"


rule prepare_tokenizer:
    output:
        directory(RESULTS / "data" / "tokenizers" / "{model}"),
    log:
        LOGS / "prepare" / "tokenizer-{model}.log",
    benchmark:
        LOGS / "prepare" / "tokenizer-{model}.tsv"
    wildcard_constraints:
        model=one_of(SCRATCH),
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=2000,
        runtime=10,
    params:
        facts=lambda w: plan.prepare_facts(EXPERIMENT, "tokenizer", w.model),
    shell:
        "synopsis --log {log:q} prepare {resources.config} tokenizer {wildcards.model:q}"


rule prepare_corpus:
    input:
        lambda w: LAYOUT.tokenizer(w.model),
    output:
        directory(RESULTS / "data" / "{corpus}" / "{model}"),
    log:
        LOGS / "prepare" / "corpus-{corpus}-{model}.log",
    benchmark:
        LOGS / "prepare" / "corpus-{corpus}-{model}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    # As many processes tokenise, or as there are cores; a generated corpus is written by one.
    threads: lambda w: 1 if EXPERIMENT.corpora[w.corpus].source == "world" else 8
    resources:
        config=CONFIG,
        mem_mb=lambda w, threads: 2000 + 1000 * threads,
        runtime=240,
    params:
        facts=lambda w: plan.prepare_facts(EXPERIMENT, "corpus", w.corpus),
    shell:
        "synopsis --log {log:q} prepare {resources.config} corpus {wildcards.corpus:q} {wildcards.model:q}"


rule prepare_instructions:
    output:
        RESULTS / "data" / "instructions" / "{instructions}.json",
    log:
        LOGS / "prepare" / "instructions-{instructions}.log",
    benchmark:
        LOGS / "prepare" / "instructions-{instructions}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=2000,
        runtime=30,
    params:
        facts=lambda w: plan.prepare_facts(EXPERIMENT, "instructions", w.instructions),
    shell:
        "synopsis --log {log:q} prepare {resources.config} instructions {wildcards.instructions:q}"


rule prepare_task:
    output:
        RESULTS / "data" / "tasks" / "{dataset}.json",
    log:
        LOGS / "prepare" / "task-{dataset}.log",
    benchmark:
        LOGS / "prepare" / "task-{dataset}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=2000,
        runtime=30,
    params:
        facts=lambda w: plan.prepare_facts(EXPERIMENT, "task", w.dataset),
    shell:
        "synopsis --log {log:q} prepare {resources.config} task {wildcards.dataset:q}"
