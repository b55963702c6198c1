"""The words of the tokenizer "grade_school", in the order of their ids.

They are those of `data.grade_school_templates`. A word that is missing is spelt in letters, so that
stories may change without a change of ids; append new words, never reorder: checkpoints depend on
the ids.
"""

_TEXT = """
    A Ada After Ben Carla David Each Elena Every Farid First Friday Grace How Hugo In Irene It Jamal
    Kenji Lena Marco Monday Nadia Omar On Paula Quinn Rosa Samir Tara The Then There Together
    Tuesday Two Uma Victor Wendy Yusuf a all among an and animals apples are around as away back bag
    bags bakes balloons basket be beads bike blue book books box boxes breaks brings broken builds
    bus but buttons buy buys by can candles cards cheaper child children coins collects come cookies
    cost costs cows day days do does dollars drops each earns eats eggs empty equally evening every
    farm fence fewer field fifth fills finds first flow flowers for friend friends full gain gains
    garden gave get gets gives go goes gone grows had half has have hens hold holds hour hours how
    in into is it lamp lamps left legs liters long longer loses machine make makes many marbles
    meter meters miles minute minutes more morning muffins need needs not now of old older on
    oranges orders others out packs pages pay pays pears pencils percent plants postcards quarter
    reads red rest rides rolls rows run runs sale saves school second sell sells share shares shells
    shop sides spend spends stamps stickers still stones store storm students take tank than that
    the them then there they third three thrown tickets times to together tomatoes toys train trays
    twice two walk walks wants week weeks which wide will with works years
"""
WORDS = tuple(_TEXT.split())
