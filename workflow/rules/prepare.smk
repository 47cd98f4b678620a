# Everything that comes from outside is fetched, converted and tokenised here; later stages never use the network.


rule prepare_model:
    output:
        directory(outputs(PREPARE["model"])),
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
        mem_mb=grows(8000),
        runtime=grows(60),
    params:
        fingerprint=fingerprint(PREPARE["model"]),
    shell:
        "synopsis --log {log:q} prepare {resources.config} model {wildcards.model:q}"


rule prepare_tokenizer:
    output:
        directory(outputs(PREPARE["tokenizer"])),
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
        mem_mb=grows(2000),
        runtime=grows(10),
    params:
        fingerprint=fingerprint(PREPARE["tokenizer"]),
    shell:
        "synopsis --log {log:q} prepare {resources.config} tokenizer {wildcards.model:q}"


rule prepare_corpus:
    input:
        inputs(PREPARE["corpus"]),
    output:
        directory(outputs(PREPARE["corpus"])),
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
        mem_mb=lambda w, threads, attempt: (2000 + 1000 * threads) * attempt,
        runtime=grows(240),
    params:
        fingerprint=fingerprint(PREPARE["corpus"]),
    shell:
        "synopsis --log {log:q} prepare {resources.config} corpus {wildcards.corpus:q} {wildcards.model:q}"


rule prepare_instructions:
    output:
        outputs(PREPARE["instructions"]),
    log:
        LOGS / "prepare" / "instructions-{instructions}.log",
    benchmark:
        LOGS / "prepare" / "instructions-{instructions}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=grows(2000),
        runtime=grows(30),
    params:
        fingerprint=fingerprint(PREPARE["instructions"]),
    shell:
        "synopsis --log {log:q} prepare {resources.config} instructions {wildcards.instructions:q}"


rule prepare_task:
    output:
        outputs(PREPARE["task"]),
    log:
        LOGS / "prepare" / "task-{dataset}.log",
    benchmark:
        LOGS / "prepare" / "task-{dataset}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=grows(2000),
        runtime=grows(30),
    params:
        fingerprint=fingerprint(PREPARE["task"]),
    shell:
        "synopsis --log {log:q} prepare {resources.config} task {wildcards.dataset:q}"
