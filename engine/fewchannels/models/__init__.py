"""From a model's name to a loaded pipeline whose hidden states can be read and edited.

``source`` finds a model and reads its geometry without its weights; ``load`` opens it. ``families`` describes where
each transformer class keeps its streams, with the classes of ``family``. ``sampler`` runs the pipeline and declares
each forward; ``taps`` has the hooks through which captures and edits access it.

Imported by others: compiled, completeness, embeddings, families, family, family_file, from_images, generation,
    geometry, in_memory, inspection, interruption, load, load_options, loaded, model, patching, placeholder, quiet,
    sampler, source, taps, timings.
Imports: errors, files, machine, settings, manifest.
"""
