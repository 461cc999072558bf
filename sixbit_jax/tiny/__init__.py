"""The procedural captioned world that tiny-wan is trained on: scenes, their videos and their captions, drawn in JAX.

    key --world.sample_scene--> Scene --render.render--> video
                                  |----captions.caption_tokens--> ids   (the same words as captions.caption)
                                  |----attributes.attributes----> the truth that `sixbit_jax.evaluate` scores against

Everything up to the token ids runs under `jit` and `vmap`, so that a GPU makes its own training data.
"""
