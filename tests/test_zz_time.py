import time, functools, cProfile, pstats
def test_t(tiny_config, tmp_path, quick_compile, monkeypatch):
    import jax
    from gadjax.parallel import mesh
    monkeypatch.setattr(mesh, "make_mesh", functools.partial(mesh.make_mesh, devices=jax.devices()[:1]))
    from gadjax.train import run
    for i in range(2):
        t=time.time(); c=time.process_time(); 
        p=cProfile.Profile(); p.enable()
        run(tiny_config(), tmp_path/str(i)); p.disable(); print("RUN", time.time()-t, time.process_time()-c)
        pstats.Stats(p).sort_stats("cumtime").print_stats(50)
    assert 0
