// Every image that a pattern names, one process each:
//   nextflow run examples/hpc/deconvolve.nf --input 'stacks/*.tif' --outdir sharp -profile slurm -resume
// A retry begins in a new work folder, so an interrupted task starts again; long images are better sharded.
params.input = 'stacks/*.tif'
params.outdir = 'sharp'
params.options = ''

process DECONVOLVE {
    tag "${stack.name}"
    cpus 8
    memory 16.GB
    time 4.h
    maxRetries 3
    // 75: interrupted by a signal; 137, 143: killed, as by preemption
    errorStrategy { task.exitStatus in [75, 137, 143] ? 'retry' : 'finish' }
    publishDir params.outdir, mode: 'move'

    input:
    path stack

    output:
    path "${stack.simpleName}_sharp.ome.tif"

    script:
    """
    mrbcr deconvolve '${stack}' -o '${stack.simpleName}_sharp.ome.tif' --workers ${task.cpus} ${params.options}
    """
}

workflow {
    DECONVOLVE(channel.fromPath(params.input))
}
